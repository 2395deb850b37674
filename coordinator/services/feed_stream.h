// A server stream that follows a job: writes what is new whenever the job's feed says so, without a thread of its own.
//
// Life: Start() -> any number of messages -> Finish(), when NextMessage() says so or the client goes away. At most one
// write is under way; changes meanwhile are coalesced into one more look. Owned by itself until gRPC is done with it.
#ifndef DISTILL_COORDINATOR_SERVICES_FEED_STREAM_H_
#define DISTILL_COORDINATOR_SERVICES_FEED_STREAM_H_

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/core/job_feed.h"
#include "coordinator/services/rpc_answer.h"

namespace distill {

template <typename Message>
class FeedStream : public grpc::ServerWriteReactor<Message>, public std::enable_shared_from_this<FeedStream<Message>> {
 public:
  explicit FeedStream(JobFeed* feed) : feed_(feed) {}

  // Begins to follow the job and returns what the handler has to return.
  static grpc::ServerWriteReactor<Message>* Start(std::shared_ptr<FeedStream> stream, const std::string& job_id) {
    FeedStream* const raw = stream.get();
    // Subscribe before the first look: a change in between makes a second look, not a missed one.
    raw->ticket_ = raw->feed_->Subscribe(job_id, [weak = std::weak_ptr<FeedStream>(stream)] {
      if (const auto held = weak.lock()) held->Pump();
    });
    raw->self_ = std::move(stream);
    raw->Pump();
    return raw;
  }
  // A stream that ends at once.
  static grpc::ServerWriteReactor<Message>* Refuse(std::shared_ptr<FeedStream> stream, const Status& status) {
    FeedStream* const raw = stream.get();
    raw->self_ = std::move(stream);
    {
      absl::MutexLock lock(&raw->mutex_);
      raw->finished_ = true;
    }
    raw->Finish(ToGrpc(status));
    return raw;
  }

  void OnWriteDone(bool ok) override {
    {
      absl::MutexLock lock(&mutex_);
      busy_ = false;
      cancelled_ = cancelled_ || !ok;
    }
    Pump();
  }
  void OnCancel() override {
    {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
    }
    Pump();
  }
  void OnDone() override {
    feed_->Unsubscribe(ticket_);
    self_.reset();  // may delete this
  }

 protected:
  enum class Next { kMessage, kNothing, kEnd };
  // Fills in the next message, or says that there is none now (kNothing) or ever (kEnd). One call at a time, on any
  // thread.
  virtual StatusOr<Next> NextMessage(Message* message) = 0;

 private:
  void Pump() {
    grpc::Status end;
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        if (finished_) return;
        if (busy_) {
          again_ = true;
          return;
        }
        if (cancelled_) {
          finished_ = true;
          end = grpc::Status::CANCELLED;
          break;
        }
        busy_ = true;
        again_ = false;
      }
      // busy_ makes this the only thread here.
      message_.Clear();
      Next next = Next::kEnd;
      const Status status = Guarded([&]() -> Status {
        DISTILL_ASSIGN_OR_RETURN(next, NextMessage(&message_));
        return OkStatus();
      });
      if (status.ok() && next == Next::kMessage) {
        this->StartWrite(&message_);
        return;
      }
      absl::MutexLock lock(&mutex_);
      busy_ = false;
      if (!status.ok() || next == Next::kEnd) {
        finished_ = true;
        end = ToGrpc(status);
        break;
      }
      if (!again_ && !cancelled_) return;
    }
    this->Finish(end);
  }

  JobFeed* const feed_;  // not owned: outlives the server
  uint64_t ticket_ = 0;
  std::shared_ptr<FeedStream> self_;  // set while gRPC uses this object
  Message message_;                   // of the thread that set busy_
  absl::Mutex mutex_;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;   // a look or a write is under way
  bool again_ ABSL_GUARDED_BY(mutex_) = false;  // something changed meanwhile
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // Finish() was or is being called
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_SERVICES_FEED_STREAM_H_
