// What the losses' benchmarks share: checking, alternating, reporting.
#ifndef DISTILL_BENCH_LOSSES_BENCH_RUN_H_
#define DISTILL_BENCH_LOSSES_BENCH_RUN_H_

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/str_cat.h"

namespace distill {

using torch::Tensor;

inline double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double Median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + x.size() / 2, x.end());
  return x[x.size() / 2];
}

[[noreturn]] inline void Die(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

template <typename T>
T Value(StatusOr<T> result) {
  if (!result.ok()) Die(std::string(ToStd(result.status().message())));
  return *std::move(result);
}

inline void CheckClose(const std::string& what, double got, double want, double limit) {
  if (!(std::fabs(got - want) <= limit * std::fabs(want))) Die(StrCat(what, " is ", got, ", must be ", want));
}

// Relative, in L2.
inline void CheckClose(const std::string& what, const Tensor& got, const Tensor& want, double limit) {
  const Tensor expected = want.to(torch::kDouble);
  const double error = ((got.to(torch::kDouble) - expected).norm() / expected.norm()).item<double>();
  if (!(error <= limit)) Die(StrCat(what, " differs by ", error, " of its size; ", limit, " is allowed"));
}

// Skewed, as feature maps are: mostly small, a few large values.
inline Tensor RandomMap(at::IntArrayRef shape) {
  const Tensor x = torch::randn(shape);
  return torch::where(x > 1, 2 * x * x, 0.5 * x);
}

class Bench {
 public:
  // `settle` ends what the device still does; on the CPU nothing.
  Bench(
      int rounds, std::string only, std::function<void()> settle = [] {})
      : rounds_(rounds), only_(std::move(only)), settle_(std::move(settle)) {}

  bool Wants(const std::string& name) const { return name.find(only_) != std::string::npos; }

  // Alternates the two, reports, and returns the median seconds of ours.
  double Time(const std::string& name, const std::function<void()>& baseline, const std::function<void()>& ours) {
    settle_();
    std::vector<double> baseline_s, ours_s, ratios;
    for (int round = 0; round < rounds_; ++round) {
      const double start = Seconds();
      baseline();
      settle_();
      const double middle = Seconds();
      ours();
      settle_();
      baseline_s.push_back(middle - start);
      ours_s.push_back(Seconds() - middle);
      ratios.push_back(baseline_s.back() / ours_s.back());
    }
    const double median = Median(ours_s);
    Result(name + "_ms", median * 1e3, "ms", Median(baseline_s) * 1e3, Median(ratios));
    std::printf("%s: ratios %.2f to %.2f\n", name.c_str(), *std::min_element(ratios.begin(), ratios.end()),
                *std::max_element(ratios.begin(), ratios.end()));
    std::fflush(stdout);
    return median;
  }

  // Median seconds of a call, reported by nobody.
  double Measure(const std::function<void()>& call) {
    std::vector<double> seconds;
    settle_();
    for (int round = 0; round < rounds_; ++round) {
      const double start = Seconds();
      call();
      settle_();
      seconds.push_back(Seconds() - start);
    }
    return Median(seconds);
  }

  void Result(const std::string& name, double value, const char* unit, double baseline, double ratio) {
    char line[256];
    std::snprintf(line, sizeof line, "RESULT %s %.2f %s baseline=%.2f ratio=%.3g", name.c_str(), value, unit, baseline,
                  ratio);
    results_.push_back(line);
  }

  void Print() const {
    for (const std::string& line : results_) std::printf("%s\n", line.c_str());
  }

 private:
  const int rounds_;
  const std::string only_;
  const std::function<void()> settle_;
  std::vector<std::string> results_;
};

}  // namespace distill

#endif  // DISTILL_BENCH_LOSSES_BENCH_RUN_H_
