// The other end of a feature stream as a process of its own, to be killed or stopped:
//   transport_peer teacher           serves (mean_teacher.h), and writes "HOST:PORT\n" to standard output
//   transport_peer student HOST:PORT  asks for features without end
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/synchronization/mutex.h"
#include "tests/integration/mean_teacher.h"

namespace distill::testing {
namespace {

int Teach() {
  const MeanTeacher teacher(/*shared_memory=*/true);
  std::printf("%s\n", teacher.endpoint().address.c_str());
  std::fflush(stdout);
  while (true) pause();
}

int Study(const std::string& address) {
  const auto awake = KeepGrpcAwake();
  MetricsRegistry metrics;
  const auto pool = TeacherPool::Create(MeanPoolOptions(&metrics)).value();
  pool->SetTeachers({{"t", address, "means", "d1"}});
  absl::Mutex mutex;
  int asked = 0;  // and unanswered
  for (uint64_t id = 0;; ++id) {
    {
      absl::MutexLock lock(&mutex);
      const auto few = [&asked] { return asked < 4; };
      mutex.Await(absl::Condition(&few));
      ++asked;
    }
    pool->Fetch(id, StepImages(id), [&](const StatusOr<FeatureBatch>&) {
      absl::MutexLock lock(&mutex);
      --asked;
    });
  }
}

}  // namespace
}  // namespace distill::testing

int main(int argc, char** argv) {
  const std::string role = argc > 1 ? argv[1] : "";
  if (role == "teacher") return distill::testing::Teach();
  if (role == "student" && argc > 2) return distill::testing::Study(argv[2]);
  return 2;
}
