// The inside of TeacherPool, for its own sources:
//   teacher_pool.cc            the loop and its times
//   teacher_pool_links.cc      the list of teachers, their connections and streams
//   teacher_pool_requests.cc   requests: taken in, sent as the window has room, asked again, ended
//   teacher_pool_choice.cc     whom they go to, and when a second teacher is asked
//   teacher_pool_answers.cc    what teachers send, and what that says about them
#ifndef DISTILL_STUDENT_WORKER_FEATURE_TEACHER_POOL_CORE_H_
#define DISTILL_STUDENT_WORKER_FEATURE_TEACHER_POOL_CORE_H_

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "student_worker/feature/answer_assembler.h"
#include "student_worker/feature/feature_metrics.h"
#include "student_worker/feature/feature_request.h"
#include "student_worker/feature/feature_window.h"
#include "student_worker/feature/teacher_connection.h"
#include "student_worker/feature/teacher_health.h"
#include "student_worker/feature/teacher_pool.h"

namespace distill {

// Everything below the guarded block is touched by the pool's thread alone ("FromLoop").
class TeacherPool::Core : public std::enable_shared_from_this<TeacherPool::Core> {
 public:
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;
  using Duration = Clock::duration;

  explicit Core(Options options);

  void Start();
  void StopAndJoin();
  void Post(std::function<void()> task) ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t window_used() const { return window_->used(); }
  size_t connected() const { return connected_; }
  uint64_t NewTicket() { return ++last_ticket_; }

  void FetchFromLoop(uint64_t ticket, uint64_t id, ImageBatch images, Callback callback);
  void CancelFromLoop(uint64_t ticket);
  void SetTeachersFromLoop(std::vector<TeacherEndpoint> endpoints);

 private:
  struct Teacher;
  // An answer that a teacher owes.
  struct Attempt {
    uint64_t ticket = 0;  // not in requests_ any more: the answer is not wanted, but still counts against the credit
    std::unique_ptr<AnswerAssembler> assembler;
    uint64_t cost = 0;  // bytes of credit meant for it ...
    uint64_t due = 0;   // ... and those of them for which no memory was made yet
  };
  struct Stream {
    std::unique_ptr<TeacherConnection> connection;
    Teacher* teacher = nullptr;             // not owned; null once dropped, when only kClosed is awaited
    bool ending = false;                    // the teacher has ended the call; its status is on the way
    std::map<uint64_t, Attempt> in_flight;  // by request id on the wire
    // Bytes the teacher may still send, and the part of them that answers of in_flight will use. They differ after an
    // answer that was an error, which used none of its credit.
    uint64_t credit = 0;
    uint64_t committed = 0;
    // Since when it works on the oldest answer it owes: when it began to owe one, or ended the last one.
    Time working_since;
  };
  struct Teacher {
    Teacher(TeacherEndpoint where, const TeacherHealth::Options& options)
        : endpoint(std::move(where)), health(options) {}
    TeacherEndpoint endpoint;
    TeacherHealth health;
    // idle: no channel, no stream; dialing: channel only; open: both.
    std::shared_ptr<grpc::Channel> channel;  // shared with the connection
    Stream* stream = nullptr;                // owned by streams_
    Time dial_deadline;                      // dialing
    Status refusal;            // not OK: this teacher will not answer, though it is tried again now and then
    Status last_trouble;       // why it was left last, for people
    int faults = 0;            // in a row
    bool late = false;         // owes an answer for longer than usual
    bool told_late = false;    // people know
    bool told_way = false;     // people know by which way its features come
    bool unusable = false;     // refused without asking: never dialed
    std::string Name() const;  // "teacher 'gpu-0' at 10.0.0.7:7100"
    bool open() const { return stream != nullptr && !stream->ending; }
  };
  // Why a stream is given up, and what that says about its teacher.
  enum class Cause { kAway, kStalled, kWrong };

  // The loop.
  void Run();
  Time NextTimerFromLoop(Time now) const;
  void CheckTimersFromLoop(Time now);
  void CheckQuietFromLoop(Time now);
  void EndQuietFromLoop();
  void ShiftTimesFromLoop(Duration pause);
  void TellFromLoop(EventLevel level, const std::string& text) const;

  // Teachers and their streams.
  void DialFromLoop(Teacher* teacher);
  void PollDialFromLoop(Teacher* teacher);
  void OpenStreamFromLoop(Teacher* teacher);
  void LeaveFromLoop(Teacher* teacher, const Status& why, Cause cause);
  void DropFromLoop(Stream* stream, const Status& why, Cause cause);
  void SetAsideFromLoop(Teacher* teacher, const std::string& why, Cause cause);
  void RecallCreditFromLoop(Stream* stream);
  void PollJoinFromLoop(Teacher* teacher, Time now);
  void UpdateConnectedFromLoop();
  std::string DescribeFromLoop(const Teacher& teacher, Time now) const;

  // Requests.
  FeatureRequest* FindFromLoop(uint64_t ticket);
  void DispatchFromLoop(Time now);
  bool FailIfNobodyIsLeftFromLoop(FeatureRequest* request, Time now);
  bool MayStillBeAnsweredFromLoop(const FeatureRequest& request, Time now) const;
  // Bytes of the answer for n images; nothing while shapes are unknown.
  std::optional<uint64_t> CostFromLoop(uint32_t n) const;
  // Whether the window has room for the answer, or the stream credit left over.
  bool HasRoomFromLoop(const Stream& stream, uint64_t cost) const;
  void SendFromLoop(Stream* stream, FeatureRequest* request, uint64_t cost, Time now);
  FillableBuffer AllocateFromLoop(Stream* stream, uint64_t wire_id, uint64_t size);
  void AskAgainFromLoop(FeatureRequest* request);
  void FinishFromLoop(uint64_t ticket, StatusOr<FeatureBatch> result);

  // Whom they go to.
  Teacher* ChooseFromLoop(const FeatureRequest& request, Time now, bool trusted_only);
  void TryOutFromLoop(Time now);
  void AskSecondsFromLoop(Time now);
  std::optional<Duration> PoolUsualFromLoop(const Teacher* except) const;

  // Answers.
  void OnEventFromLoop(TeacherConnection::Event event);
  void OnChunkFromLoop(Stream* stream, TeacherConnection::Event event);
  void OnOfferFromLoop(Stream* stream, const TeacherConnection::Event& event);
  void OnAnswerFromLoop(Stream* stream, Attempt attempt, Time now);
  void OnErrorFromLoop(Stream* stream, std::map<uint64_t, Attempt>::iterator it, const FeatureChunk& chunk);

  static int64_t WholeSeconds(Duration time) { return std::chrono::duration_cast<std::chrono::seconds>(time).count(); }

  const Options options_;
  FeatureMetrics metrics_;
  std::thread thread_;
  std::atomic<uint64_t> last_ticket_ = 0;  // atomic: callers on any thread draw tickets
  std::atomic<size_t> connected_ = 0;      // atomic: read by any thread, for people and tests
  std::shared_ptr<FeatureWindow> window_;  // shared with the tensors handed out, which may outlive the pool

  mutable absl::Mutex mu_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool wake_ ABSL_GUARDED_BY(mu_) = false;  // bytes were released

  bool stopping_ = false;
  std::vector<std::unique_ptr<Teacher>> teachers_;  // in the order of SetTeachers
  std::map<TeacherConnection*, std::unique_ptr<Stream>> streams_;
  std::map<uint64_t, FeatureRequest> requests_;  // unanswered, by ticket
  std::set<uint64_t> waiting_;                   // those that no teacher owes: resent ones come before later ones
  std::vector<std::vector<uint32_t>> tap_shapes_;
  uint64_t last_wire_id_ = 0;
  // Answers of numbers that are none, given by several teachers alike: after some, one teacher's word is enough.
  int agreed_not_finite_ = 0;
  std::optional<Time> quiet_since_;  // since when answers are owed and none comes
  bool told_quiet_ = false;          // people know
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_FEATURE_TEACHER_POOL_CORE_H_
