// Calls the native kernel with several threads, on shapes of several blocks and tasks, and compares with plain loops.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "problem.hpp"

extern "C" int sipp_max_product_portable(const Problem*);
extern "C" void sipp_survey_portable(Survey*);

namespace {

std::mt19937 generator(1);
float uniform() { return std::uniform_real_distribution<float>(0, 1)(generator); }

struct Shape {  // a convolution over one dimension; a Linear is one of a single position a sample
  int64_t samples, positions, step, channels, kernel, groups, neurons;
};

// Whether every number is that of the definition.
bool product_is_right(const Shape& s, int64_t threads) {
  const int64_t length = (s.positions - 1) * s.step + s.kernel, n = s.channels * s.kernel;
  std::vector<float> x(s.samples * s.groups * s.channels * length), z(s.samples * s.groups * 2 * s.neurons * s.positions);
  for (float& a : x) a = uniform();
  for (float& a : z) a = uniform() < 0.1f ? 0 : uniform();
  std::vector<uint8_t> positive(s.groups * s.neurons * n);
  for (uint8_t& sign : positive) sign = uniform() < 0.5f;
  std::vector<int64_t> starts, columns;
  for (int64_t i = 0; i < s.samples; i++) starts.push_back(i * s.groups * s.channels * length);
  for (int64_t c = 0; c < s.channels; c++)
    for (int64_t k = 0; k < s.kernel; k++) columns.push_back(c * length + k);
  std::vector<float> out(s.groups * s.neurons * n);
  const int64_t channel = s.positions, sample = s.groups * 2 * s.neurons * channel, group = s.channels * length;
  const Problem problem{x.data(), starts.data(), s.samples, s.positions, s.step, columns.data(), n, group, z.data(),
                        sample, channel, s.positions, s.groups, s.neurons, positive.data(), out.data(), threads};
  if (sipp_max_product_portable(&problem)) return false;
  for (int64_t g = 0; g < s.groups; g++)
    for (int64_t i = 0; i < s.neurons; i++)
      for (int64_t j = 0; j < n; j++) {
        const int64_t at = (g * s.neurons + i) * n + j, row = g * 2 * s.neurons + i + (positive[at] ? 0 : s.neurons);
        float expected = 0;
        for (int64_t b = 0; b < s.samples; b++)
          for (int64_t p = 0; p < s.positions; p++) {
            const float sum = z[b * sample + row * channel + p];
            const float a = x[starts[b] + p * s.step + columns[j] + g * group];
            if (sum > 0) expected = std::max(expected, a * (1.0f / sum));
          }
        if (out[at] != expected) return false;
      }
  return true;
}

bool survey_is_right(int64_t samples, int64_t channels, int64_t spatial, int64_t threads) {
  std::vector<float> z(samples * channels * spatial);
  for (float& a : z) a = uniform() < 0.1f ? 0 : uniform();
  std::vector<int64_t> active(channels, 0), expected(channels, 0);
  Survey survey{z.data(), samples, channels, channels * spatial, spatial, spatial, active.data(), 0, 0, threads};
  sipp_survey_portable(&survey);
  float smallest = std::numeric_limits<float>::max(), largest = 0;
  for (size_t i = 0; i < z.size(); i++)
    if (z[i] > 0) {
      expected[i / spatial % channels]++;
      smallest = std::min(smallest, z[i]), largest = std::max(largest, z[i]);
    }
  return active == expected && survey.smallest == smallest && survey.largest == largest;
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {1, 1100, 1, 20, 1, 1, 260},  // three blocks of 512 patches
      {1, 600, 1, 330, 1, 1, 5},    // six tasks of 64 columns
      {3, 529, 2, 4, 3, 2, 70},     // a strided convolution with groups
  };
  bool right = true;
  for (const int64_t threads : {2, 3, 5}) {
    for (const Shape& shape : shapes) right = product_is_right(shape, threads) && right;
    right = survey_is_right(3, 40, 50, threads) && right;
  }
  std::puts(right ? "every number is right" : "a number is WRONG");
  return right ? 0 : 1;
}
