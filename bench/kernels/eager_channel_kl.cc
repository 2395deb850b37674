#include "bench/kernels/eager_channel_kl.h"

#include <math.h>

namespace distill {
namespace {

// out[i] = f(i) over the whole tensor.
template <typename F>
void Elementwise(int64_t count, const ParallelFor& parallel_for, float* out, F f) {
  parallel_for(0, count, 32768, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = f(i);
  });
}

float RowMax(const float* x, int64_t n) {
  float largest = x[0];
  for (int64_t i = 1; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

}  // namespace

double EagerChannelKl(const float* student, const float* teacher, int64_t rows, int64_t hw, float temperature,
                      const ParallelFor& parallel_for, EagerTensors* tensors, float* gradient) {
  const int64_t count = rows * hw;
  auto& b = tensors->buffers;
  b.resize(8);
  for (auto& buffer : b) buffer.resize(count);
  float *scaled_s = b[0].data(), *scaled_t = b[1].data(), *log_q = b[2].data(), *p = b[3].data(), *log_p = b[4].data(),
        *terms = b[5].data(), *d_log_q = b[6].data(), *d_scaled = b[7].data();
  const float inverse_t = 1 / temperature, scale = temperature * temperature / rows;

  // Forward: s / T, t / T, log_softmax, softmax, log, p * (log p - log q), sum.
  Elementwise(count, parallel_for, scaled_s, [=](int64_t i) { return student[i] * inverse_t; });
  Elementwise(count, parallel_for, scaled_t, [=](int64_t i) { return teacher[i] * inverse_t; });
  parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = scaled_s + r * hw;
      const float largest = RowMax(x, hw);
      float sum = 0;
      for (int64_t i = 0; i < hw; ++i) sum += expf(x[i] - largest);
      const float lse = largest + logf(sum);
      for (int64_t i = 0; i < hw; ++i) log_q[r * hw + i] = x[i] - lse;
    }
  });
  parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = scaled_t + r * hw;
      const float largest = RowMax(x, hw);
      float sum = 0;
      for (int64_t i = 0; i < hw; ++i) sum += p[r * hw + i] = expf(x[i] - largest);
      const float inverse = 1 / sum;
      for (int64_t i = 0; i < hw; ++i) p[r * hw + i] *= inverse;
    }
  });
  Elementwise(count, parallel_for, log_p, [=](int64_t i) { return logf(p[i]); });
  Elementwise(count, parallel_for, terms, [=](int64_t i) { return p[i] > 0 ? p[i] * (log_p[i] - log_q[i]) : 0; });
  std::vector<double> sums(rows);
  parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float sum = 0;
      for (int64_t i = 0; i < hw; ++i) sum += terms[r * hw + i];
      sums[r] = sum;
    }
  });
  double loss = 0;
  for (double sum : sums) loss += scale * sum;

  // Backward: of p * (log p - log q), of log_softmax, of s / T.
  Elementwise(count, parallel_for, d_log_q, [=](int64_t i) { return -scale * p[i]; });
  parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float sum = 0;
      for (int64_t i = 0; i < hw; ++i) sum += d_log_q[r * hw + i];
      for (int64_t i = 0; i < hw; ++i) d_scaled[r * hw + i] = d_log_q[r * hw + i] - expf(log_q[r * hw + i]) * sum;
    }
  });
  Elementwise(count, parallel_for, gradient, [=](int64_t i) { return d_scaled[i] * inverse_t; });
  return loss;
}

}  // namespace distill
