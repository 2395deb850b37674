#include "student_worker/feature/teacher_pool.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/log.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "student_worker/feature/teacher_pool_core.h"

namespace distill {
namespace {

// gRPC's channel tells its state when asked, and so does a Unix socket; they are asked this often while a connection is
// being made, or a teacher's memory is on its way.
constexpr std::chrono::milliseconds kPoll{5};
// A loop that wakes this much after its time was not run (a stopped process, a paused machine): no teacher is to blame.
constexpr std::chrono::seconds kPause{2};

}  // namespace

// --- The loop ---

TeacherPool::Core::Core(Options options)
    : options_(std::move(options)), metrics_(options_.metrics), tap_shapes_(options_.tap_shapes) {}

void TeacherPool::Core::Start() {
  // Weak: a tensor that outlives the pool finds nobody to wake.
  window_ = std::make_shared<FeatureWindow>(options_.window_bytes, [weak = weak_from_this()] {
    if (const std::shared_ptr<Core> core = weak.lock()) {
      absl::MutexLock lock(&core->mu_);
      core->wake_ = true;
    }
  });
  thread_ = std::thread([this] { Run(); });
}

void TeacherPool::Core::Post(std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  tasks_.push_back(std::move(task));
}

void TeacherPool::Core::StopAndJoin() {
  Post([this] {
    stopping_ = true;
    teachers_.clear();
    for (auto& [connection, stream] : streams_) {
      stream->teacher = nullptr;
      stream->in_flight.clear();
      window_->Recall(std::exchange(stream->credit, 0));
      connection->Close(/*cancel=*/true);
    }
    waiting_.clear();
    while (!requests_.empty()) {
      FinishFromLoop(requests_.begin()->first, absl::CancelledError("the teacher pool is closed"));
    }
    UpdateConnectedFromLoop();
  });
  thread_.join();
}

void TeacherPool::Core::Run() {
  pthread_setname_np(pthread_self(), "teacher-pool");
  while (true) {
    std::deque<std::function<void()>> tasks;
    const Time before = Clock::now();
    const Time deadline = std::max(before, NextTimerFromLoop(before));
    {
      absl::MutexLock lock(&mu_);
      if (stopping_ && streams_.empty() && tasks_.empty()) return;
      auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !tasks_.empty() || wake_; };
      if (deadline == Time::max()) {
        mu_.Await(absl::Condition(&ready));
      } else {
        AwaitFor(&mu_, absl::Condition(&ready), absl::FromChrono(deadline - Clock::now()));
      }
      tasks.swap(tasks_);
      wake_ = false;
    }
    if (const Time now = Clock::now(); deadline != Time::max() && now > deadline + kPause) {
      ShiftTimesFromLoop(now - deadline);
    }
    for (std::function<void()>& task : tasks) {
      task();
      task = nullptr;  // frees what it holds (a received chunk) before the next one runs
    }
    if (!stopping_) {
      const Time now = Clock::now();
      CheckTimersFromLoop(now);
      AskSecondsFromLoop(now);
      DispatchFromLoop(now);
      TryOutFromLoop(now);
      CheckQuietFromLoop(now);
    }
    metrics_.InFlight(window_used());
  }
}

TeacherPool::Core::Time TeacherPool::Core::NextTimerFromLoop(Time now) const {
  Time next = Time::max();
  if (stopping_) return next;
  // Times that have passed have had their effect; what they wait for wakes the loop by itself.
  const auto at = [&](Time time) {
    if (time > now) next = std::min(next, time);
  };
  for (const auto& teacher : teachers_) {
    if (teacher->unusable) continue;
    if (teacher->stream == nullptr) {
      next = std::min(next, teacher->channel == nullptr ? teacher->health.resting_until() : now + kPoll);
      continue;
    }
    at(teacher->health.resting_until());
    const Stream& stream = *teacher->stream;
    if (stream.connection->joining()) next = std::min(next, now + kPoll);
    if (stream.in_flight.empty()) continue;
    const uint64_t cost = stream.in_flight.begin()->second.cost;
    const Duration late = teacher->health.LateAfter(cost, PoolUsualFromLoop(teacher.get()));
    at(stream.working_since + late);
    at(stream.working_since + 2 * late);
    next = std::min(next, stream.working_since + teacher->health.StallTimeout(cost));
  }
  for (uint64_t ticket : waiting_) {
    const FeatureRequest& request = requests_.at(ticket);
    if (request.first_said.has_value()) at(*request.first_said + options_.health.stall_timeout);
  }
  if (quiet_since_.has_value()) at(*quiet_since_ + options_.notice_after);
  return next;
}

void TeacherPool::Core::CheckTimersFromLoop(Time now) {
  for (const auto& teacher : teachers_) {
    Stream* const stream = teacher->stream;
    if (teacher->unusable) continue;
    if (stream != nullptr) {
      PollJoinFromLoop(teacher.get(), now);
      if (stream->in_flight.empty()) continue;
      const Duration owed = now - stream->working_since;
      if (owed < teacher->health.StallTimeout(stream->in_flight.begin()->second.cost)) continue;
      DropFromLoop(stream,
                   absl::UnavailableError(StrCat("no complete answer for ", WholeSeconds(owed), " s, while it owes ",
                                                 stream->in_flight.size())),
                   Cause::kStalled);
    } else if (teacher->channel != nullptr) {
      PollDialFromLoop(teacher.get());
    } else if (!teacher->health.Rests(now)) {
      DialFromLoop(teacher.get());
    }
  }
}

// This process did not run for a while: the teachers' time did not pass either.
void TeacherPool::Core::ShiftTimesFromLoop(Duration pause) {
  LogWarning("the teacher pool was not run for a while; no teacher is blamed for it",
             {{"seconds", WholeSeconds(pause)}});
  for (auto& [connection, stream] : streams_) stream->working_since += pause;
  for (const auto& teacher : teachers_) teacher->dial_deadline += pause;
  if (quiet_since_.has_value()) *quiet_since_ += pause;
}

// Tells people when answers are owed and none comes, and when they come again.
void TeacherPool::Core::CheckQuietFromLoop(Time now) {
  // A full window is no such case: that is the consumer's time.
  bool owed =
      !waiting_.empty() && ChooseFromLoop(requests_.at(*waiting_.begin()), now, /*trusted_only=*/false) == nullptr;
  for (const auto& [ticket, request] : requests_) owed |= request.attempts > 0;
  if (!owed) {
    if (!told_quiet_) quiet_since_.reset();
    return;
  }
  if (!quiet_since_.has_value()) quiet_since_ = now;
  if (told_quiet_ || now - *quiet_since_ < options_.notice_after) return;
  told_quiet_ = true;
  std::vector<std::string> whom;
  for (const auto& teacher : teachers_) whom.push_back(DescribeFromLoop(*teacher, now));
  TellFromLoop(EventLevel::kWarning,
               StrCat("waiting for ", requests_.begin()->second.What(), " since ", WholeSeconds(now - *quiet_since_),
                      " s: ", whom.empty() ? "no teacher is listed" : absl::StrJoin(whom, "; ")));
}

void TeacherPool::Core::EndQuietFromLoop() {
  if (std::exchange(told_quiet_, false)) {
    TellFromLoop(EventLevel::kInfo,
                 StrCat("features come again, after ", WholeSeconds(Clock::now() - *quiet_since_), " s"));
  }
  quiet_since_.reset();
}

void TeacherPool::Core::TellFromLoop(EventLevel level, const std::string& text) const {
  if (options_.on_event) {
    options_.on_event(level, text);
  } else {
    Log(level == EventLevel::kInfo ? LogLevel::kInfo : LogLevel::kWarning, text);
  }
}

// --- The face ---

StatusOr<std::unique_ptr<TeacherPool>> TeacherPool::Create(Options options) {
  if (options.taps.empty()) return absl::InvalidArgumentError("a teacher pool needs at least one tap");
  if (!options.tap_shapes.empty() && options.tap_shapes.size() != options.taps.size()) {
    return absl::InvalidArgumentError(
        StrCat(options.tap_shapes.size(), " tap shapes for ", options.taps.size(), " taps"));
  }
  if (options.window_bytes == 0) return absl::InvalidArgumentError("prefetch must be positive");
  auto core = std::make_shared<Core>(std::move(options));
  core->Start();
  return std::unique_ptr<TeacherPool>(new TeacherPool(std::move(core)));
}

TeacherPool::TeacherPool(std::shared_ptr<Core> core) : core_(std::move(core)) {}

TeacherPool::~TeacherPool() { core_->StopAndJoin(); }

void TeacherPool::SetTeachers(std::vector<TeacherEndpoint> teachers) {
  Core* const core = core_.get();
  core->Post([core, teachers = std::move(teachers)]() mutable { core->SetTeachersFromLoop(std::move(teachers)); });
}

uint64_t TeacherPool::Fetch(uint64_t id, ImageBatch images, Callback callback) {
  Core* const core = core_.get();
  const uint64_t ticket = core->NewTicket();
  core->Post([core, ticket, id, images = std::move(images), callback = std::move(callback)]() mutable {
    core->FetchFromLoop(ticket, id, std::move(images), std::move(callback));
  });
  return ticket;
}

void TeacherPool::Cancel(uint64_t ticket) {
  Core* const core = core_.get();
  core->Post([core, ticket] { core->CancelFromLoop(ticket); });
}

size_t TeacherPool::connected() const { return core_->connected(); }

uint64_t TeacherPool::window_used() const { return core_->window_used(); }

}  // namespace distill
