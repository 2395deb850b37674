#include "common/metrics/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace distill {
namespace {

using Labels = std::map<std::string, std::string>;  // prometheus::Labels

// Each handle belongs to prometheus's family, which the registry owns and never drops.
class PrometheusCounter : public Counter {
 public:
  PrometheusCounter(prometheus::Family<prometheus::Counter>* family, const Labels& labels)
      : family_(family), metric_(&family->Add(labels)) {}
  ~PrometheusCounter() override { family_->Remove(metric_); }
  void Add(double amount) override { metric_->Increment(amount); }
  double Value() const override { return metric_->Value(); }

 private:
  prometheus::Family<prometheus::Counter>* const family_;
  prometheus::Counter* const metric_;
};
class PrometheusGauge : public Gauge {
 public:
  PrometheusGauge(prometheus::Family<prometheus::Gauge>* family, const Labels& labels)
      : family_(family), metric_(&family->Add(labels)) {}
  ~PrometheusGauge() override { family_->Remove(metric_); }
  void Set(double value) override { metric_->Set(value); }
  void Add(double amount) override { metric_->Increment(amount); }
  double Value() const override { return metric_->Value(); }

 private:
  prometheus::Family<prometheus::Gauge>* const family_;
  prometheus::Gauge* const metric_;
};
class PrometheusHistogram : public Histogram {
 public:
  PrometheusHistogram(prometheus::Family<prometheus::Histogram>* family, const Labels& labels,
                      const std::vector<double>& buckets)
      : family_(family), metric_(&family->Add(labels, buckets)) {}
  ~PrometheusHistogram() override { family_->Remove(metric_); }
  void Observe(double value) override { metric_->Observe(value); }

 private:
  prometheus::Family<prometheus::Histogram>* const family_;
  prometheus::Histogram* const metric_;
};

// Metric names are written in our sources, so a clash is a bug, not bad input.
[[noreturn]] void Misused(const std::string& name, const char* why) {
  std::fprintf(stderr, "metric '%s' %s\n", name.c_str(), why);
  std::abort();
}

// prometheus-cpp escapes label values but not help texts.
std::string EscapeHelp(const std::string& help) {
  std::string escaped;
  for (char c : help) {
    if (c == '\n') {
      escaped += "\\n";
    } else if (c == '\\') {
      escaped += "\\\\";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

template <typename Prometheus, typename Handle>
struct Families {
  struct Entry {
    prometheus::Family<Prometheus>* family = nullptr;  // owned by the registry
    std::map<Labels, std::unique_ptr<Handle>> handles;
  };
  std::map<std::string, Entry> entries;

  template <typename Build>
  typename Families::Entry& Get(prometheus::Registry* registry, const std::string& name, const std::string& help,
                                Build build) {
    Entry& entry = entries[name];
    if (entry.family == nullptr) entry.family = &build().Name(name).Help(EscapeHelp(help)).Register(*registry);
    return entry;
  }
  void Remove(const std::string& name, const Labels& labels) {
    auto found = entries.find(name);
    if (found != entries.end()) found->second.handles.erase(labels);
  }
};

}  // namespace

struct MetricsRegistry::Impl {
  mutable absl::Mutex mutex;
  prometheus::Registry registry;                                                     // thread-safe by itself
  std::map<std::string, std::pair<char, std::string>> kinds ABSL_GUARDED_BY(mutex);  // type letter and help by name
  Families<prometheus::Counter, Counter> counters ABSL_GUARDED_BY(mutex);
  Families<prometheus::Gauge, Gauge> gauges ABSL_GUARDED_BY(mutex);
  Families<prometheus::Histogram, Histogram> histograms ABSL_GUARDED_BY(mutex);

  void CheckKind(char kind, const std::string& name, const std::string& help) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    const auto [found, inserted] = kinds.try_emplace(name, kind, help);
    if (found->second.first != kind) Misused(name, "is registered with two types");
    if (found->second.second != help) Misused(name, "is registered with two help texts");
  }
};

MetricsRegistry::MetricsRegistry() : impl_(std::make_unique<Impl>()) {}
MetricsRegistry::~MetricsRegistry() = default;

Counter& MetricsRegistry::GetCounter(const std::string& name, const std::string& help, const MetricLabels& labels) {
  absl::MutexLock lock(&impl_->mutex);
  impl_->CheckKind('c', name, help);
  auto& entry = impl_->counters.Get(&impl_->registry, name, help, [] { return prometheus::BuildCounter(); });
  std::unique_ptr<Counter>& handle = entry.handles[labels];
  if (handle == nullptr) handle = std::make_unique<PrometheusCounter>(entry.family, labels);
  return *handle;
}

Gauge& MetricsRegistry::GetGauge(const std::string& name, const std::string& help, const MetricLabels& labels) {
  absl::MutexLock lock(&impl_->mutex);
  impl_->CheckKind('g', name, help);
  auto& entry = impl_->gauges.Get(&impl_->registry, name, help, [] { return prometheus::BuildGauge(); });
  std::unique_ptr<Gauge>& handle = entry.handles[labels];
  if (handle == nullptr) handle = std::make_unique<PrometheusGauge>(entry.family, labels);
  return *handle;
}

Histogram& MetricsRegistry::GetHistogram(const std::string& name, const std::string& help,
                                         const std::vector<double>& buckets, const MetricLabels& labels) {
  absl::MutexLock lock(&impl_->mutex);
  impl_->CheckKind('h', name, help);
  if (!std::is_sorted(buckets.begin(), buckets.end())) Misused(name, "has buckets that do not ascend");
  auto& entry = impl_->histograms.Get(&impl_->registry, name, help, [] { return prometheus::BuildHistogram(); });
  std::unique_ptr<Histogram>& handle = entry.handles[labels];
  if (handle == nullptr) handle = std::make_unique<PrometheusHistogram>(entry.family, labels, buckets);
  return *handle;
}

void MetricsRegistry::Remove(const std::string& name, const MetricLabels& labels) {
  absl::MutexLock lock(&impl_->mutex);
  impl_->counters.Remove(name, labels);
  impl_->gauges.Remove(name, labels);
  impl_->histograms.Remove(name, labels);
}

std::string MetricsRegistry::Serialize() const {
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

std::vector<double> SecondsBuckets() {
  std::vector<double> buckets;
  for (double decade : {1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0}) {
    for (double step : {1.0, 2.5, 5.0}) buckets.push_back(decade * step);
  }
  buckets.push_back(100);
  return buckets;
}

}  // namespace distill
