#include "common/kernels/channel_kl_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace distill {
namespace {

// log softmax(x / T): x_i / T minus the logarithm of the sum of exponentials, relative to the largest x so that nothing
// overflows.
template <typename Real>
std::vector<Real> LogSoftmax(const Real* x, int64_t count, Real temperature) {
  const Real largest = *std::max_element(x, x + count);
  Real sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp((x[i] - largest) / temperature);
  const Real log_sum = std::log(sum);
  std::vector<Real> log_probability(count);
  for (int64_t i = 0; i < count; ++i) log_probability[i] = (x[i] - largest) / temperature - log_sum;
  return log_probability;
}

float Element(const void* map, ElementType type, int64_t index) {
  return DispatchElement(
      type, [&](auto* tag) { return ToFloat(static_cast<const std::remove_pointer_t<decltype(tag)>*>(map)[index]); });
}

}  // namespace

template <typename Real>
Real RowDivergence(bool cross_entropy, Real temperature, const Real* teacher, const Real* student, int64_t count,
                   Real* gradient) {
  if (count == 0) return 0;
  const std::vector<Real> log_p = LogSoftmax(teacher, count, temperature);
  const std::vector<Real> log_q = LogSoftmax(student, count, temperature);
  Real sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Real p = std::exp(log_p[i]);
    const Real q = std::exp(log_q[i]);
    sum += cross_entropy ? -p * log_q[i] : p * (log_p[i] - log_q[i]);
    if (gradient != nullptr) gradient[i] = (q - p) / temperature;
  }
  return sum;
}

template <typename Real>
StatusOr<ChannelKlReferenceResult> ChannelKlReference(const ChannelKlMaps& maps, const ChannelKlOptions& options) {
  DISTILL_RETURN_IF_ERROR(ValidateChannelKl(maps, options, {}));
  ChannelKlReferenceResult out;
  out.gradient.assign(maps.n * maps.c * maps.hw, 0.0);
  out.row_divergence.assign(maps.n * maps.c, 0.0);
  const double scale = options.weight;
  Real sum = 0;
  for (int64_t n = 0; n < maps.n; ++n) {
    for (int64_t c = 0; c < maps.c; ++c) {
      std::vector<int64_t> index;  // of the row's positions in use
      for (int64_t i = 0; i < maps.hw; ++i) {
        if (maps.mask != nullptr && maps.mask[n * maps.hw + i] == 0) continue;
        index.push_back(maps.layout == MapLayout::kChannelsFirst ? (n * maps.c + c) * maps.hw + i
                                                                 : (n * maps.hw + i) * maps.c + c);
      }
      std::vector<Real> teacher, student, gradient(index.size());
      bool finite = true;
      for (int64_t i : index) {
        teacher.push_back(Element(maps.teacher, maps.teacher_type, i));
        student.push_back(Element(maps.student, maps.student_type, i));
        finite = finite && std::isfinite(teacher.back()) && std::isfinite(student.back());
      }
      const int64_t row = n * maps.c + c;
      if (!finite) {
        out.row_divergence[row] = std::numeric_limits<double>::quiet_NaN();
        if (out.result.nonfinite_rows++ == 0) out.result.first_nonfinite_row = row;
        continue;
      }
      const Real divergence = RowDivergence<Real>(options.cross_entropy, static_cast<Real>(options.temperature),
                                                  teacher.data(), student.data(), index.size(), gradient.data());
      out.row_divergence[row] = static_cast<double>(divergence);
      sum += divergence;
      for (size_t i = 0; i < index.size(); ++i) out.gradient[index[i]] = static_cast<double>(scale * gradient[i]);
    }
  }
  out.result.loss =
      out.result.nonfinite_rows > 0 ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(scale * sum);
  return out;
}

template double RowDivergence(bool, double, const double*, const double*, int64_t, double*);
template long double RowDivergence(bool, long double, const long double*, const long double*, int64_t, long double*);
template StatusOr<ChannelKlReferenceResult> ChannelKlReference<double>(const ChannelKlMaps&, const ChannelKlOptions&);
template StatusOr<ChannelKlReferenceResult> ChannelKlReference<long double>(const ChannelKlMaps&,
                                                                            const ChannelKlOptions&);

}  // namespace distill
