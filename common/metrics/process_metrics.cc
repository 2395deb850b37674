#include "common/metrics/process_metrics.h"

#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>

namespace distill {
namespace {

double Seconds(const timeval& time) { return static_cast<double>(time.tv_sec) + 1e-6 * time.tv_usec; }

}  // namespace

ProcessMetrics::ProcessMetrics(MetricsRegistry* registry)
    : cpu_seconds_(registry->GetCounter("process_cpu_seconds_total", "User and system CPU time spent, all threads.")),
      resident_bytes_(registry->GetGauge("process_resident_memory_bytes", "Resident memory.")) {
  registry->GetGauge("process_start_time_seconds", "Unix time at which the process started.")
      .Set(std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count());
  Refresh();
}

void ProcessMetrics::Refresh() {
  rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) == 0) {
    const double now = Seconds(usage.ru_utime) + Seconds(usage.ru_stime);
    cpu_seconds_.Add(std::max(0.0, now - cpu_seconds_.Value()));
  }
  std::ifstream statm("/proc/self/statm");  // in pages: size, resident, ...
  double size = 0, resident = 0;
  if (statm >> size >> resident) resident_bytes_.Set(resident * static_cast<double>(sysconf(_SC_PAGESIZE)));
}

void MeasureFolder(const std::string& folder, const std::string& path, MetricsRegistry* registry) {
  struct statvfs space;
  if (statvfs(path.c_str(), &space) != 0) return;
  const double block = static_cast<double>(space.f_frsize);
  registry
      ->GetGauge("distill_folder_free_bytes", "Bytes that this process may still write to the folder's file system.",
                 {{"folder", folder}})
      .Set(block * static_cast<double>(space.f_bavail));
  registry->GetGauge("distill_folder_size_bytes", "Size of the folder's file system.", {{"folder", folder}})
      .Set(block * static_cast<double>(space.f_blocks));
}

}  // namespace distill
