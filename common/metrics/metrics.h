// Counters, gauges and histograms (prometheus-cpp behind a small face; its headers stay in metrics.cc).
//
// Names: `distill_` + thing + base unit (+ `_total` for counters). Few label values, never a step or sample id.
// Handles stay valid as long as the registry, or until Remove(). All operations are thread-safe.
#ifndef DISTILL_COMMON_METRICS_METRICS_H_
#define DISTILL_COMMON_METRICS_METRICS_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace distill {

using MetricLabels = std::map<std::string, std::string>;

class Counter {
 public:
  virtual ~Counter() = default;
  virtual void Add(double amount = 1) = 0;  // amount >= 0
  virtual double Value() const = 0;
};
class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void Set(double value) = 0;
  virtual void Add(double amount) = 0;
  virtual double Value() const = 0;
};
class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void Observe(double value) = 0;
};

class MetricsRegistry {
 public:
  MetricsRegistry();
  ~MetricsRegistry();
  // The same name and labels give the same handle (a histogram keeps its first buckets).
  // REQUIRES: one help text and one type per name; names and label names of [a-zA-Z_][a-zA-Z0-9_]*; ascending buckets.
  Counter& GetCounter(const std::string& name, const std::string& help, const MetricLabels& labels = {});
  Gauge& GetGauge(const std::string& name, const std::string& help, const MetricLabels& labels = {});
  Histogram& GetHistogram(const std::string& name, const std::string& help, const std::vector<double>& buckets,
                          const MetricLabels& labels = {});
  // Drops a gauge/counter/histogram (an ended job's series). Its handle is invalid afterwards. No effect when there is
  // none.
  void Remove(const std::string& name, const MetricLabels& labels);
  // Text exposition format 0.0.4.
  std::string Serialize() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Seconds from 100 us to 100 s, for latencies.
std::vector<double> SecondsBuckets();

}  // namespace distill

#endif  // DISTILL_COMMON_METRICS_METRICS_H_
