// The max-times product, out[i,j] = max(out[i,j], max_p x[p,j] / z[p,i]), and the survey of z, for one instruction set.
//
// Lanes run over patches, so that the sign of a weight only chooses which of two rows of 1 / z a tile reads: no blend
// in the inner loop, one multiplication and one maximum a lane. A tile is one column against up to eight neurons.
// 1 / z of a block of patches stays in the second-level cache; the columns that meet it are packed beside it, block by
// block, so that no unfolded input is ever made.
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "problem.hpp"

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ACCUMULATORS = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8, ACCUMULATORS = 8;
#elif defined(__aarch64__)
constexpr int LANES = 4, ACCUMULATORS = 16;
#else
constexpr int LANES = 4, ACCUMULATORS = 8;
#endif
constexpr int ROWS = 8;                     // neurons of a tile
constexpr int64_t PATCHES = 512;            // of a tile: 8 neurons, two signs: 32 KiB
constexpr int64_t COLUMNS = 64;             // packed at once: 128 KiB
constexpr int64_t RECIPROCALS = 1 << 18;    // of one block of patches, all neurons: 1 MiB, unless 512 patches are more

typedef float Vector __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// Lane l: the larger of lanes l and l ^ H, of b where l & H, of a elsewhere.
template <int H, int... L>
inline Vector halve(Vector a, Vector b, std::integer_sequence<int, L...>) {
  return larger(__builtin_shufflevector(a, b, ((L & H) ? LANES + L : L)...),
                __builtin_shufflevector(a, b, ((L & H) ? LANES + (L ^ H) : (L ^ H))...));
}
template <int H>
inline Vector halve(Vector a, Vector b) {
  return halve<H>(a, b, std::make_integer_sequence<int, LANES>{});
}

// The largest lane of each of eight vectors.
inline void largest_lanes(const Vector* v, float* out) {
  constexpr int SIZE = std::min(LANES, ROWS);
  for (int first = 0; first < ROWS; first += SIZE) {
    const Vector* w = v + first;
    Vector all = halve<2>(halve<1>(w[0], w[1]), halve<1>(w[2], w[3]));
    if constexpr (LANES >= 8) all = halve<4>(all, halve<2>(halve<1>(w[4], w[5]), halve<1>(w[6], w[7])));
    if constexpr (LANES >= 16) all = halve<8>(all, all);
    std::memcpy(out + first, &all, SIZE * sizeof(float));
  }
}

// best[c] = max over patches of column * rows[c].
template <int C>
inline void tile(const float* column, const float* const* rows, int64_t patches, float* best) {
  constexpr int UNROLL = std::min(ROWS, std::max(1, ACCUMULATORS / C));
  const float* row[C];
  Vector sums[UNROLL][C];
  for (int c = 0; c < C; c++) {
    row[c] = rows[c];
    for (int u = 0; u < UNROLL; u++) sums[u][c] = Vector{};
  }
  int64_t p = 0;
  for (; p + LANES * UNROLL <= patches; p += LANES * UNROLL) {
#pragma GCC unroll 8
    for (int u = 0; u < UNROLL; u++) {
      const Vector a = load(column + p + u * LANES);
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) sums[u][c] = larger(sums[u][c], load(row[c] + p + u * LANES) * a);
    }
  }
  for (; p < patches; p += LANES) {
    const Vector a = load(column + p);
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) sums[0][c] = larger(sums[0][c], load(row[c] + p) * a);
  }
  Vector all[ROWS] = {};
  for (int c = 0; c < C; c++) {
    all[c] = sums[0][c];
    for (int u = 1; u < UNROLL; u++) all[c] = larger(all[c], sums[u][c]);
  }
  largest_lanes(all, best);
}

// C neurons against the packed columns; r: their rows of 1 / z, those of negative weights `minus` numbers further on.
template <int C>
void neurons(const float* packed, int64_t columns, const float* r, int64_t stride, int64_t minus, int64_t patches,
             int64_t n, const uint8_t* positive, float* out) {
  float best[COLUMNS][ROWS];
  for (int64_t j = 0; j < columns; j++) {
    const float* rows[C];
    for (int c = 0; c < C; c++) rows[c] = r + c * stride + (positive[c * n + j] ? 0 : minus);
    tile<C>(packed + j * PATCHES, rows, patches, best[j]);
  }
  for (int c = 0; c < C; c++)
    for (int64_t j = 0; j < columns; j++) out[c * n + j] = std::max(out[c * n + j], best[j][c]);
}

// Column `offset` of patches first .. first + count, padded with zeros up to `padded`.
void pack(const Problem& q, int64_t offset, int64_t first, int64_t count, int64_t padded, float* to) {
  int64_t run = first / q.length, at = first % q.length;
  std::fill(to + count, to + padded, 0.0f);
  while (count > 0) {
    const int64_t size = std::min(count, q.length - at);
    const float* from = q.x + offset + q.starts[run] + at * q.step;
    if (q.step == 1)
      for (int64_t k = 0; k < size; k++) to[k] = from[k];
    else
      for (int64_t k = 0; k < size; k++) to[k] = from[k * q.step];
    to += size, count -= size, run++, at = 0;
  }
}

// 1 / z, 0 where z is 0, of one row and patches first .. first + count, padded with zeros up to `padded`.
void invert(const Problem& q, int64_t channel, int64_t first, int64_t count, int64_t padded, float* to) {
  int64_t sample = first / q.spatial, at = first % q.spatial;
  std::fill(to + count, to + padded, 0.0f);
  while (count > 0) {
    const int64_t size = std::min(count, q.spatial - at);
    const float* z = q.z + sample * q.sample_stride + channel * q.channel_stride + at;
    for (int64_t k = 0; k < size; k++) to[k] = z[k] > 0 ? 1.0f / z[k] : 0.0f;
    to += size, count -= size, sample++, at = 0;
  }
}

// Patches are padded with zeros to whole vectors.
int64_t rounded(int64_t patches) { return (patches + LANES - 1) / LANES * LANES; }

// Columns first .. first + columns of one group against every neuron of it, over one block of patches.
void columns_of_group(const Problem& q, int64_t group, int64_t column, int64_t columns, int64_t first, int64_t count,
                      const float* reciprocals, int64_t stride, float* packed) {
  for (int64_t p = 0; p < count; p += PATCHES) {
    const int64_t size = std::min(PATCHES, count - p), padded = rounded(size);
    for (int64_t j = 0; j < columns; j++)
      pack(q, q.columns[column + j] + group * q.group_stride, first + p, size, padded, packed + j * PATCHES);
    const float* r = reciprocals + group * 2 * q.neurons * stride + p;
    const int64_t minus = q.neurons * stride, start = group * q.neurons * q.n + column;
    const auto step = [&](int64_t i, auto kernel) {
      kernel(packed, columns, r + i * stride, stride, minus, padded, q.n, q.positive + start + i * q.n,
             q.out + start + i * q.n);
    };
    int64_t i = 0;
    for (; i + 8 <= q.neurons; i += 8) step(i, neurons<8>);
    for (; i + 4 <= q.neurons; i += 4) step(i, neurons<4>);
    for (; i + 2 <= q.neurons; i += 2) step(i, neurons<2>);
    for (; i < q.neurons; i++) step(i, neurons<1>);
  }
}

int64_t thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

struct Free {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<float, Free>;
Buffer buffer(int64_t numbers) {
  return Buffer(static_cast<float*>(::operator new(numbers * sizeof(float), std::align_val_t{64}, std::nothrow)));
}

}  // namespace

#define JOINED(name, variant) name##_##variant
#define NAMED(name, variant) JOINED(name, variant)

// Returns 0, or 1 where memory ran out (out is then partly folded: harmless, since folding again gives the same).
extern "C" int NAMED(sipp_max_product, SIPP_VARIANT)(const Problem* problem) {
  const Problem& q = *problem;
  const int64_t total = q.runs * q.length, rows = q.groups * 2 * q.neurons;
  const int64_t block = std::max(PATCHES, std::min(total, RECIPROCALS / std::max<int64_t>(rows, 1)) / PATCHES * PATCHES);
  // Not a power of two: rows of the same tile would evict each other from the first-level cache.
  const int64_t stride = rounded(std::min(block, total)) + 16;
  // Fewer columns at a time where there would be too little to share among the threads.
  int64_t width = COLUMNS;
  while (width > 16 && q.groups * ((q.n + width - 1) / width) < 4 * q.threads && q.threads > 1) width /= 2;
  const int64_t parts = (q.n + width - 1) / width;
  const int threads = static_cast<int>(q.threads);
  Buffer reciprocals = buffer(rows * stride), packed = buffer(threads * COLUMNS * PATCHES);
  if (!reciprocals || !packed) return 1;
#pragma omp parallel num_threads(threads)
  {
    float* own = packed.get() + thread() * COLUMNS * PATCHES;
    for (int64_t first = 0; first < total; first += block) {
      const int64_t count = std::min(block, total - first);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; row++)
        invert(q, row, first, count, rounded(count), reciprocals.get() + row * stride);
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < q.groups * parts; task++) {
        const int64_t column = task % parts * width;
        columns_of_group(q, task / parts, column, std::min(width, q.n - column), first, count, reciprocals.get(),
                         stride, own);
      }
    }
  }
  return 0;
}

extern "C" void NAMED(sipp_survey, SIPP_VARIANT)(Survey* survey) {
  Survey& s = *survey;
  float smallest = std::numeric_limits<float>::max(), largest = 0;
  const int threads = static_cast<int>(s.threads);
#pragma omp parallel for num_threads(threads) reduction(min : smallest) reduction(max : largest)
  for (int64_t channel = 0; channel < s.channels; channel++) {
    int64_t active = 0;
    for (int64_t sample = 0; sample < s.samples; sample++) {
      const float* z = s.z + sample * s.sample_stride + channel * s.channel_stride;
      int32_t some = 0;
      float low = std::numeric_limits<float>::max(), high = 0;
      for (int64_t k = 0; k < s.spatial; k++) {
        some += z[k] > 0;
        low = std::min(low, z[k] > 0 ? z[k] : std::numeric_limits<float>::max());
        high = std::max(high, z[k]);
      }
      active += some, smallest = std::min(smallest, low), largest = std::max(largest, high);
    }
    s.active[channel] += active;
  }
  s.smallest = smallest, s.largest = largest;
}
