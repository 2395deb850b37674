// One client's stream of feature maps as a state machine that knows no transport: what a client may say, when a batch
// is computed, what may be sent and when, and how the stream ends. What clients may rely on stands in
// feature_service.h.
//
// clang-format off
//   new      --Open-->     open      batches, credits and cancels are taken
//   any      --decided-->  ended     how the stream ends is known: what the client says is dropped, what it asked for
//                                    is forgotten, and nothing more is sent
//   ended    --sent-->     finished  once the message under way is sent: StreamTransport::Finish
// clang-format on
//
// A batch: waiting (its pixels are in the budget) -> admitted (its features too) -> in the engine -> answered (being
// sent, as far as the credit reaches) -> forgotten. Errors overtake answers, and need no credit.
//
// A client of this host that wishes it is offered a ring of shared memory (stream_ring.h). Once it says that it has
// mapped it, the bytes of messages are written there, and messages say where; a message waits until the client has
// returned room for it.
#ifndef DISTILL_TEACHER_SERVER_STREAM_CORE_H_
#define DISTILL_TEACHER_SERVER_STREAM_CORE_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "teacher_server/stream_open.h"
#include "teacher_server/stream_ring.h"
#include "teacher_server/teacher_engine.h"

namespace distill {

class StreamSet;

// Mirrors v1.FeatureResponse: a piece of an answer, or the error that a batch ends with.
struct StreamMessage {
  uint64_t request_id = 0;
  Status error;  // not OK: nothing below is set
  uint32_t tap_index = 0;
  std::vector<uint32_t> shape;  // of the whole tensor
  WireDtype dtype = WireDtype::kF32;
  TensorLayout layout = TensorLayout::kRowMajor;
  uint64_t total_bytes = 0;
  uint64_t offset = 0;
  Buffer payload;
  // In the place of `payload`, when it was written into the stream's ring.
  std::optional<RingPiece> piece;
  std::string model_digest;  // with offset 0
  bool last = false;         // the batch is answered
  double queue_seconds = 0;  // with `last`
  double compute_seconds = 0;
  // Set: a message about nothing else.
  std::optional<RingOffer> offer;
  // Of a stream with whole answers: the answer, which nothing above but request_id repeats.
  FeatureBatch whole;
};

// How a protocol uses a stream.
struct StreamKind {
  // One message an answer, which needs no credit. Its bytes stay on the books until it was sent.
  bool whole_answers = false;
  // One batch's features; more gets RESOURCE_EXHAUSTED in band. 0: as StreamLimits says.
  uint64_t max_answer_bytes = 0;
  // Its opening and its end go into the log.
  bool logged = true;
};

// The way to the client, of one stream. Called by any thread, under no lock of the stream. Neither may wait.
class StreamTransport {
 public:
  virtual ~StreamTransport() = default;
  // One at a time: the next only after StreamCore::Sent().
  virtual void Send(StreamMessage message) = 0;
  // The stream ends while a message is under way, which nobody needs any more: Sent() had better come soon. Finish
  // comes after this has returned.
  virtual void BreakOff() {}
  // Once, and the last call; no message is under way. The object may be gone before it returns.
  virtual void Finish(const Status& status) = 0;
};

// Thread-safe, but the client's messages come one at a time. Lives until the engine's last callback for it; the engine
// and the set outlive it. Every call from outside may answer through the transport before it returns.
class StreamCore : public std::enable_shared_from_this<StreamCore> {
 public:
  using Clock = std::chrono::steady_clock;

  // Made by StreamSet::Add.
  StreamCore(StreamSet* set, TeacherEngine* engine, uint64_t id, std::string peer, StreamTransport* transport,
             const StreamKind& kind)
      : set_(set), id_(id), engine_(engine), peer_(std::move(peer)), transport_(transport), kind_(kind) {}

  // From the client. What it may not say ends the stream with kInvalidArgument.
  void Open(const StreamOpen& open);
  // `shape` as the client says, unchecked.
  void Batch(uint64_t request_id, const std::vector<uint32_t>& shape, Buffer pixels);
  void Grant(uint64_t credit_bytes);
  void Cancel(uint64_t request_id);
  // What it says to the ring that it was offered, and that it has read so many bytes more of it.
  void RingMapped(bool mapped);
  void RingReturned(uint64_t bytes);
  // A message that says none of these.
  void NothingSaid();
  // It says nothing more: the stream ends when all is answered.
  void ClientIsDone();

  // From the transport. The last message has gone.
  void Sent();
  // Ends the stream with `status` as soon as no message is under way. The first call counts.
  void End(Status status);
  // Finish was, or is about to be called: no need to read on.
  bool finished();

  // From the set. It drains, or it is this stream's turn for memory: whatever may go on goes on.
  void Poke() { Pump(); }
  uint64_t id() const { return id_; }
  // Ends the stream when it was made before `before` and has not opened.
  void EndUnlessOpened(Clock::time_point before);
  // When the client last took something, if memory is held until it takes features, or grants credit.
  std::optional<Clock::time_point> holding_since();
  void EndForOthers();

 private:
  // A batch that has not ended: waiting here, in the engine, or (partly) unsent.
  struct Unanswered {
    uint64_t pixel_bytes = 0;  // counted in waiting_bytes_
    uint64_t reserved = 0;     // counted in unsent_bytes_; 0 while it waits here
    bool submitted = false;    // in to_submit_ or given to the engine, whose callback has not come
    bool cancelled = false;    // the engine's answer is to be dropped
  };
  struct Answer {
    uint64_t request_id;
    FeatureBatch batch;
    size_t tap = 0;
    uint64_t offset = 0;  // of the next byte to send, in this tap
  };
  struct Failure {
    uint64_t request_id;
    Status status;
  };
  struct Waiting {
    uint64_t request_id;
    ImageBatch images;
    uint64_t answer_bytes;
  };

  // False: the client may not say this now, which ends the stream, or the stream has ended, which drops it.
  bool Takes(bool is_open) ABSL_LOCKS_EXCLUDED(mutex_);
  // After the client's message: an error ends the stream.
  void Proceed(const Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  Status TakeOpen(const StreamOpen& open);
  Status TakeBatch(uint64_t request_id, const std::vector<uint32_t>& shape, Buffer pixels);
  // Why a batch is refused in band. OK: its pixels are taken out of the budget.
  Status CheckBatchLocked(const std::vector<uint32_t>& shape, const Buffer& pixels)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeCancel(uint64_t request_id);
  Status TakeMapped(bool mapped);
  Status TakeReturned(uint64_t bytes);
  // The engine's callback.
  void OnAnswer(uint64_t request_id, StatusOr<FeatureBatch> answer);

  // Starts whatever may start: gives admitted batches to the engine, sends the next message, or finishes the stream.
  // Then others get the memory that this freed.
  void Pump() ABSL_LOCKS_EXCLUDED(mutex_);
  void AdmitLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The client has granted credit for this answer and all that are under way.
  bool CoveredLocked(const Waiting& next) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Gives what was admitted to the engine, in order: one thread at a time does so, the one that set `submitting_`. A
  // cancel, or the stream's end, that comes while a request is on its way finds nothing in the engine, and is repeated.
  void SubmitAll() ABSL_LOCKS_EXCLUDED(mutex_);
  // The first of answers_, whole. REQUIRES: there is one.
  StreamMessage WholeAnswerLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The next message; nothing when there is none now. Sets end_status_ when there can be none any more.
  std::optional<StreamMessage> NextMessageLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Its bytes have their place in the ring, which is filled under no lock before the message goes.
  struct Filling {
    std::shared_ptr<const RingWriter> ring;  // shared with ring_, which may go meanwhile
    Buffer bytes;
  };
  // As many of the next bytes as fit, out of `left` and the credit. Nothing: the ring has no room.
  std::optional<uint64_t> NextSizeLocked(uint64_t left) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool UsesRingLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropRingLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Forgets everything that is not in the engine's hands.
  void AbandonLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Takes the request off the books; an error is queued for the client.
  void EndRequestLocked(uint64_t request_id, Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLocked(uint64_t request_id, Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Moves the bytes of features under way, here and in the budget.
  void CountUnsentLocked(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddCreditLocked(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopCreditClockLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // REQUIRES: opened.
  const TeacherModel& Model() const { return engine_->models()[opened_model_.model]; }

  StreamSet* const set_;         // not owned: outlives all streams
  const uint64_t id_;            // the engine's name for this client
  TeacherEngine* const engine_;  // not owned: outlives all streams; null on a stream that is refused at once
  const std::string peer_;
  StreamTransport* const transport_;  // not owned: there until its Finish() was called
  const StreamKind kind_;
  const Clock::time_point created_ = Clock::now();

  // Written once, before `opened_` is set, by the client's Open(); later only read.
  OpenedModel opened_model_;
  bool exclusive_ = false;

  absl::Mutex mutex_;
  bool opened_ ABSL_GUARDED_BY(mutex_) = false;
  std::string client_ ABSL_GUARDED_BY(mutex_);
  bool client_is_done_ ABSL_GUARDED_BY(mutex_) = false;
  // A message is under way. Whoever sets it, under the lock, sends after unlocking; Sent() clears it. Finish goes
  // through the same gate.
  bool sending_ ABSL_GUARDED_BY(mutex_) = false;
  // End() is about to call, or in, BreakOff(): Finish waits for it.
  bool breaking_off_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;             // Finish was, or is about to be called
  std::optional<Status> end_status_ ABSL_GUARDED_BY(mutex_);  // decided how the stream ends
  uint64_t credit_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // pixels of unanswered_
  uint64_t unsent_bytes_ ABSL_GUARDED_BY(mutex_) = 0;   // sum of `reserved` over unanswered_, and whole_bytes_
  uint64_t whole_bytes_ ABSL_GUARDED_BY(mutex_) = 0;    // of the whole answer under way
  std::map<uint64_t, Unanswered> unanswered_ ABSL_GUARDED_BY(mutex_);
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);           // not yet admitted
  std::deque<TeacherRequest> to_submit_ ABSL_GUARDED_BY(mutex_);  // admitted, not yet given to the engine
  bool submitting_ ABSL_GUARDED_BY(mutex_) = false;               // a thread is in SubmitAll()
  bool in_row_ ABSL_GUARDED_BY(mutex_) = false;                   // waits for its turn in the budget
  bool freed_ ABSL_GUARDED_BY(mutex_) = false;                    // memory that others may wait for, not yet told
  std::deque<Answer> answers_ ABSL_GUARDED_BY(mutex_);            // computed, in the order of sending
  std::deque<Failure> failures_ ABSL_GUARDED_BY(mutex_);          // go before answers: they need no credit
  std::optional<Clock::time_point> credit_wait_since_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<StreamRing> ring_ ABSL_GUARDED_BY(mutex_);  // null: none
  bool offer_unsent_ ABSL_GUARDED_BY(mutex_) = false;
  Filling filling_ ABSL_GUARDED_BY(mutex_);  // of the message that NextMessageLocked has just made; else empty
  // When the client last took a message, or an answer was there for it to take.
  Clock::time_point taken_at_ ABSL_GUARDED_BY(mutex_) = created_;
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_STREAM_CORE_H_
