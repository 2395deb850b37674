// Following a server stream of the coordinator: reads on a thread of its own, reconnects, and stops at SIGINT.
#ifndef DISTILL_COORDINATOR_CLI_FOLLOW_H_
#define DISTILL_COORDINATOR_CLI_FOLLOW_H_

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/status.h"
#include "coordinator/cli/job_client.h"
#include "coordinator/cli/stop_signal.h"

namespace distill::cli {

// Reads one stream on the thread "cli-stream" and keeps its messages for the owner, at most kRoom of them (then the
// stream waits). Owned by one thread.
template <typename Message>
class StreamReader {
 public:
  using Open = std::function<std::unique_ptr<grpc::ClientReader<Message>>(grpc::ClientContext*)>;
  // `signal` is woken at each message and at the end; it outlives the reader.
  StreamReader(Open open, StopSignal* signal) : open_(std::move(open)), signal_(signal), thread_([this] { Run(); }) {}
  // Cancels the stream.
  ~StreamReader() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    context_.TryCancel();
    thread_.join();
  }
  // Messages that arrived since the last call, oldest first, and, once the stream is over and all were taken, how it
  // ended.
  std::deque<Message> Take(std::optional<grpc::Status>* end) {
    absl::MutexLock lock(&mutex_);
    *end = end_;
    return std::exchange(messages_, {});
  }

 private:
  static constexpr size_t kRoom = 1024;

  void Run() {
    pthread_setname_np(pthread_self(), "cli-stream");
    const std::unique_ptr<grpc::ClientReader<Message>> reader = open_(&context_);
    Message message;
    while (reader->Read(&message)) {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](StreamReader* self) ABSL_EXCLUSIVE_LOCKS_REQUIRED(self->mutex_) {
            return self->stopping_ || self->messages_.size() < kRoom;
          },
          this));
      if (stopping_) break;
      messages_.push_back(std::move(message));
      signal_->Wake();
    }
    const grpc::Status status = reader->Finish();
    absl::MutexLock lock(&mutex_);
    end_ = status;
    signal_->Wake();
  }

  const Open open_;
  StopSignal* const signal_;  // Not owned: outlives this reader.
  grpc::ClientContext context_;
  absl::Mutex mutex_;
  std::deque<Message> messages_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses all of the above
};

// What following needs to know. All functions are called on the thread that called FollowStream.
template <typename Message>
struct FollowHandlers {
  // Starts the stream, from where the messages so far left off.
  std::function<std::unique_ptr<grpc::ClientReader<Message>>(v1::JobService::Stub*, grpc::ClientContext*)> open;
  // True: all that was wanted has arrived.
  std::function<bool(const Message&)> on_message;
  // The server ended the stream without an error. True: that is the end; false: reconnect.
  std::function<bool()> on_end;
  // Several times a second, and at once after the terminal changed its size (`resized`).
  std::function<void(bool resized)> on_tick;
  // The connection broke (once for each time it does), and it is back.
  std::function<void(const Status& why)> on_lost;
  std::function<void()> on_back;
};

// Follows until on_message or on_end says so (OK), SIGINT arrives (kCancelled), the coordinator answers with an error
// that trying again cannot mend (that error), or it has been away for longer than client.timeout() (kUnavailable or
// kDeadlineExceeded).
template <typename Message>
Status FollowStream(JobClient& client, StopSignal& signal, const FollowHandlers<Message>& handlers) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kTick{250};
  // A stream that has been open this long on a live channel counts as contact.
  constexpr std::chrono::seconds kSettled{2};
  bool lost = false;  // no contact ...
  Clock::time_point lost_since{};
  Status why;  // ... because of this
  const auto back = [&] {
    if (lost) handlers.on_back();
    lost = false;
  };
  for (int attempt = 0;; ++attempt) {
    DISTILL_ASSIGN_OR_RETURN(const JobClient::Connection connection, client.Connect());
    const Clock::time_point opened = Clock::now();
    std::optional<grpc::Status> end;
    {
      StreamReader<Message> reader(
          [&](grpc::ClientContext* context) { return handlers.open(connection.stub.get(), context); }, &signal);
      while (!end.has_value()) {
        const bool resized = signal.Wait(kTick);
        if (signal.interrupted()) return absl::CancelledError("interrupted");
        for (const Message& message : reader.Take(&end)) {
          attempt = 0;
          back();
          if (handlers.on_message(message)) return OkStatus();
        }
        if (lost && Clock::now() - opened > kSettled &&
            connection.channel->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY && !end.has_value()) {
          back();
        }
        handlers.on_tick(resized);
        if (lost && Clock::now() - lost_since > client.timeout()) return why;
      }
    }
    if (end->ok()) {
      if (handlers.on_end()) return OkStatus();
      end = grpc::Status(grpc::StatusCode::UNAVAILABLE, "the coordinator closed the stream");
    }
    // UNKNOWN and CANCELLED are what a stream gets when its server is shut down under it.
    const bool transient =
        end->error_code() == grpc::StatusCode::UNAVAILABLE || end->error_code() == grpc::StatusCode::UNKNOWN ||
        end->error_code() == grpc::StatusCode::CANCELLED || end->error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
    const Status status = client.Translate(*end, connection.channel.get());
    if (!transient) return status;
    why = absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status) ? status
                                                                          : absl::UnavailableError(status.message());
    if (!lost) {
      lost = true;
      lost_since = Clock::now();
      handlers.on_lost(why);
    }
    const Clock::time_point retry = Clock::now() + JobClient::Backoff(attempt);
    while (Clock::now() < retry) {
      const bool resized = signal.Wait(std::min<std::chrono::milliseconds>(
          kTick, std::chrono::ceil<std::chrono::milliseconds>(retry - Clock::now())));
      if (signal.interrupted()) return absl::CancelledError("interrupted");
      handlers.on_tick(resized);
    }
    if (Clock::now() - lost_since > client.timeout()) return why;
  }
}

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_FOLLOW_H_
