#include "teacher_server/stream_set.h"

#include <pthread.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "common/shared_memory/boot_id.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"

namespace distill {
namespace {

using Clock = StreamCore::Clock;

// Value of the `result` label of distill_teacher_requests_total.
std::string_view ResultLabel(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return "ok";
    case StatusCode::kCancelled:
      return "cancelled";
    case StatusCode::kInvalidArgument:
    case StatusCode::kResourceExhausted:
    case StatusCode::kUnavailable:
      return "refused";
    default:
      return "error";
  }
}

}  // namespace

StreamSet::StreamSet(const StreamLimits& limits, MetricsRegistry* metrics, DescriptorServer* rings)
    : limits_(limits),
      budget_(limits.memory_budget),
      metrics_(metrics),
      rings_(rings),
      boot_id_(rings == nullptr ? "" : BootId()),
      sent_bytes_(metrics->GetCounter("distill_teacher_sent_bytes_total", "Payload bytes handed to the transport.")),
      shared_bytes_(metrics->GetCounter("distill_teacher_shared_memory_bytes_total",
                                        "Those of the payload bytes that went through shared memory.")),
      credit_wait_(metrics->GetCounter("distill_teacher_credit_wait_seconds_total",
                                       "Time that computed features waited for credit of their client, over all "
                                       "streams.")),
      streams_(metrics->GetGauge("distill_teacher_streams", "Open feature streams, and inference requests under way.")),
      shared_streams_(metrics->GetGauge("distill_teacher_shared_memory_streams",
                                        "Streams whose features go through shared memory.")),
      budget_used_(
          metrics->GetGauge("distill_teacher_memory_budget_used_bytes", "Pixels and unsent features of all streams.")),
      slow_clients_(metrics->GetCounter("distill_teacher_slow_clients_total",
                                        "Streams that were ended because they took none of their features while "
                                        "others waited for the memory.")) {
  metrics->GetGauge("distill_teacher_memory_budget_bytes", "Most bytes of pixels and unsent features of all streams.")
      .Set(static_cast<double>(limits.memory_budget));
  watch_ = std::thread([this] { Watch(); });
}

StreamSet::~StreamSet() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  watch_.join();
}

std::shared_ptr<StreamCore> StreamSet::Add(std::string peer, StreamTransport* transport, const StreamKind& kind) {
  TeacherEngine* const engine = this->engine();
  std::shared_ptr<StreamCore> stream;
  bool room = false;
  {
    absl::MutexLock lock(&mutex_);
    stream = std::make_shared<StreamCore>(this, engine, ++last_id_, std::move(peer), transport, kind);
    live_[stream->id()] = stream;
    room = live_.size() <= limits_.max_streams;
  }
  streams_.Add(1);
  if (draining()) {
    stream->End(absl::UnavailableError("this teacher is shutting down; send the batch to another one"));
  } else if (!room) {
    stream->End(absl::UnavailableError(StrCat("this teacher has ", limits_.max_streams,
                                              " streams open, the most allowed; take another one, or try again")));
  } else if (engine == nullptr) {
    stream->End(absl::UnavailableError("this teacher is still loading its models; try again, or take another one"));
  }
  return stream;
}

void StreamSet::Leave(const StreamCore& stream) {
  streams_.Add(-1);
  decltype(live_)::node_type left;  // destroyed under no lock
  absl::MutexLock lock(&mutex_);
  left = live_.extract(stream.id());
}

std::vector<std::shared_ptr<StreamCore>> StreamSet::Live() {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<StreamCore>> live;
  for (const auto& [id, stream] : live_) live.push_back(stream);
  return live;
}

std::shared_ptr<StreamCore> StreamSet::Find(uint64_t id) {
  absl::MutexLock lock(&mutex_);
  const auto found = live_.find(id);
  return found == live_.end() ? nullptr : found->second;
}

void StreamSet::Drain() {
  draining_.store(true);
  for (const auto& stream : Live()) stream->Poke();
}

bool StreamSet::WaitIdle(std::chrono::milliseconds timeout) {
  absl::MutexLock lock(&mutex_);
  auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return live_.empty(); };
  return AwaitFor(&mutex_, absl::Condition(&idle), absl::FromChrono(timeout));
}

void StreamSet::Freed() {
  {
    absl::MutexLock lock(&mutex_);
    freed_again_ = true;
    if (poking_) return;
    poking_ = true;
  }
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (!std::exchange(freed_again_, false)) {
        poking_ = false;
        return;
      }
    }
    for (uint64_t id : budget_.NextWaiting()) {
      if (const std::shared_ptr<StreamCore> next = Find(id)) {
        next->Poke();
      } else {
        budget_.Forget(id);
      }
    }
  }
}

void StreamSet::CountRequest(const std::string& model, const Status& status) {
  metrics_
      ->GetCounter("distill_teacher_requests_total", "Batches that ended, by how.",
                   {{"model", model}, {"result", std::string(ResultLabel(status))}})
      .Add();
}

void StreamSet::Watch() {
  pthread_setname_np(pthread_self(), "feature-watch");
  const auto period =
      std::min({std::chrono::milliseconds(1000), limits_.open_timeout / 4, limits_.slow_client_timeout / 4});
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (AwaitFor(&mutex_, absl::Condition(&stopping_), absl::FromChrono(period))) return;
    }
    budget_used_.Set(static_cast<double>(budget_.used()));
    const Clock::time_point now = Clock::now();
    const std::vector<std::shared_ptr<StreamCore>> live = Live();
    for (const auto& stream : live) stream->EndUnlessOpened(now - limits_.open_timeout);
    const std::optional<Clock::time_point> waiting = budget_.waiting_since();
    if (!waiting.has_value() || now - *waiting < limits_.slow_client_timeout) continue;
    // One at a time, the one that has taken nothing for longest: what it frees may be enough.
    std::shared_ptr<StreamCore> slowest;
    Clock::time_point since = now - limits_.slow_client_timeout;
    for (const auto& stream : live) {
      const std::optional<Clock::time_point> holding = stream->holding_since();
      if (!holding.has_value() || *holding > since) continue;
      since = *holding;
      slowest = stream;
    }
    if (slowest == nullptr) continue;
    slow_clients_.Add();
    slowest->EndForOthers();
  }
}

}  // namespace distill
