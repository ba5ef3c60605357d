// What Python hands over: mirrored field by field by _Problem in native.py.
#pragma once
#include <cstdint>

struct Problem {
  // Patch r * length + k, column j of group g is x[starts[r] + k * step + columns[j] + g * group_stride].
  const float* x;
  const int64_t* starts;
  int64_t runs, length, step;
  const int64_t* columns;
  int64_t n, group_stride;
  // Quadrant sums (samples, groups, 2 * neurons, spatial), the last dimension dense; sums of positive weights first.
  const float* z;
  int64_t sample_stride, channel_stride, spatial;
  int64_t groups, neurons;
  const uint8_t* positive;  // (groups, neurons, n), 1 where the weight is positive
  float* out;               // (groups, neurons, n), the running maximum
  int64_t threads;
};

struct Survey {
  const float* z;
  int64_t samples, channels, sample_stride, channel_stride, spatial;
  int64_t* active;  // (channels), added to
  float smallest, largest;
  int64_t threads;
};
