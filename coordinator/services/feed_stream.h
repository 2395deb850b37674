// A server stream that follows a job: writes what is new whenever the job's feed says so, without a thread of its own.
//
// Life: Start() -> Find() -> any number of messages -> Finish(), when NextMessage() says so or the client goes away. At
// most one write is under way; changes meanwhile are coalesced into one more look. Looks read the store, so they are
// taken on a pool's threads. Owned by itself until gRPC and the pool are done with it.
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
#include "coordinator/services/worker_pool.h"

namespace distill {

template <typename Message>
class FeedStream : public grpc::ServerWriteReactor<Message>, public std::enable_shared_from_this<FeedStream<Message>> {
 public:
  FeedStream(JobFeed* feed, WorkerPool* pool) : feed_(feed), pool_(pool) {}

  // Begins to follow the job and returns what the handler has to return.
  static grpc::ServerWriteReactor<Message>* Start(std::shared_ptr<FeedStream> stream) {
    FeedStream* const raw = stream.get();
    raw->self_ = stream;
    raw->pool_->Post([stream = std::move(stream)] { stream->Begin(); });
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
    uint64_t ticket = 0;
    {
      absl::MutexLock lock(&mutex_);
      ticket = ticket_;
    }
    feed_->Unsubscribe(ticket);
    self_.reset();  // may delete this
  }

 protected:
  // The id of the job to follow, or why there is none. Called once, first.
  virtual StatusOr<std::string> Find() = 0;
  enum class Next { kMessage, kNothing, kEnd };
  // Fills in the next message, or says that there is none now (kNothing) or ever (kEnd). One call at a time, on any
  // thread.
  virtual StatusOr<Next> NextMessage(Message* message) = 0;

 private:
  void Begin() {
    StatusOr<std::string> job_id = std::string();
    const Status found = Guarded([&]() -> Status {
      job_id = Find();
      return job_id.status();
    });
    if (!found.ok()) {
      {
        absl::MutexLock lock(&mutex_);
        finished_ = true;
      }
      this->Finish(ToGrpc(found));
      return;
    }
    // Subscribe before the first look: a change in between makes a second look, not a missed one.
    const uint64_t ticket = feed_->Subscribe(*job_id, [weak = this->weak_from_this()] {
      if (const auto held = weak.lock()) held->Pump();
    });
    {
      absl::MutexLock lock(&mutex_);
      ticket_ = ticket;
      begun_ = true;
    }
    Look();
  }

  // A look is due.
  void Pump() {
    {
      absl::MutexLock lock(&mutex_);
      if (!begun_ || finished_) return;
      if (busy_ || due_) {
        again_ = true;
        return;
      }
      due_ = true;
    }
    pool_->Post([held = this->shared_from_this()] { held->Look(); });
  }

  void Look() {
    grpc::Status end;
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        due_ = false;
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

  JobFeed* const feed_;               // not owned: outlives the server
  WorkerPool* const pool_;            // likewise
  std::shared_ptr<FeedStream> self_;  // set while gRPC uses this object
  Message message_;                   // of the thread that set busy_
  absl::Mutex mutex_;
  uint64_t ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  bool begun_ ABSL_GUARDED_BY(mutex_) = false;  // Find() has found
  bool due_ ABSL_GUARDED_BY(mutex_) = false;    // a look is on its way to the pool
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;   // a look or a write is under way
  bool again_ ABSL_GUARDED_BY(mutex_) = false;  // something changed meanwhile
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // Finish() was or is being called
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_SERVICES_FEED_STREAM_H_
