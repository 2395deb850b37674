// One StreamFeatures call to one teacher, as an object that posts what happens to the pool's loop. gRPC stays behind
// this header and teacher_pool_links.cc.
#ifndef DISTILL_STUDENT_WORKER_FEATURE_TEACHER_CONNECTION_H_
#define DISTILL_STUDENT_WORKER_FEATURE_TEACHER_CONNECTION_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/client_callback.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/shared_memory/descriptor_request.h"
#include "common/shared_memory/memory_ring.h"
#include "common/shared_memory/shared_memory_options.h"
#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "student_worker/feature/answer_assembler.h"

namespace distill {

// Lives until kClosed was posted, which happens exactly once and last, soon after Close() or after the teacher ended
// the call. All methods are for the pool's loop; the On* reactions run on gRPC's threads and only post.
//
// Shared memory: none -> offered (kOffer; call Join()) -> joining (call PollJoin() every few milliseconds) -> mapped,
// or none again, of which the teacher is told. Once it is mapped, chunks may have a `piece`.
class TeacherConnection final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  struct Event {
    enum class Kind {
      kChunk,    // one message; call Handled() when done with it
      kOffer,    // another one, an offer of shared memory; likewise
      kReadEnd,  // no more messages; the call is ending, call Close()
      kWritten,  // call WriteNext()
      kClosed,   // `status`: how the call ended; the object may be destroyed
    } kind;
    TeacherConnection* connection;
    StatusOr<FeatureChunk> chunk = FeatureChunk();  // kChunk; an error when the message cannot be parsed
    Status status;
    // kChunk: where its bytes lie, in the place of a payload; for Locate() and Return().
    std::optional<RingPiece> piece = std::nullopt;
    // kOffer, unchecked: where, with what secret, a ring of how many bytes is to be had.
    std::string socket = {}, secret = {};
    uint64_t ring_bytes = 0;
  };
  struct OpenStream {
    std::string model, digest, client;
    std::vector<TapRequest> taps;
    bool exclusive_batches = false;
    uint64_t credit_bytes = 0;
    // Most bytes of shared memory; 0: none is wanted.
    uint64_t shared_memory_bytes = 0;
  };

  // `post` must be callable from any thread until kClosed was posted.
  // `shared_memory_folder`: where to meet teachers of this host; "": without a folder.
  TeacherConnection(std::shared_ptr<grpc::Channel> channel, std::string address, std::function<void(Event)> post,
                    std::string shared_memory_folder = "");

  // Starts the call and the first read. Once.
  void Start(const OpenStream& open);
  void SendCredit(uint64_t bytes);
  // References the pixels until gRPC has sent them.
  void SendBatch(uint64_t request_id, const ImageBatch& images);
  // Tells the teacher that the answer is not wanted any more. It may come all the same, or end with CANCELLED.
  void SendCancel(uint64_t request_id);
  // Goes after the offered memory without waiting. kDataLoss: nothing of the kind was asked for, or it was offered
  // before. Memory that cannot be had is no error.
  Status Join(const Event& offer, std::chrono::steady_clock::time_point now);
  bool joining() const { return join_.has_value(); }
  // Nothing: not joining, or no end of it yet. OK: it is mapped. An error: it cannot be had, for people.
  std::optional<Status> PollJoin(std::chrono::steady_clock::time_point now);
  // The bytes of a piece of the mapped memory, which the teacher may change at any time. kDataLoss: there is none, or
  // the piece is not inside.
  StatusOr<ScatteredBuffer> Locate(const RingPiece& piece) const;
  // They have been copied: the teacher may write there again. It is told now and then.
  void Return(const RingPiece& piece);
  // Done with a message: another one may be read. Some are read before they are asked for.
  void Handled();
  // Goes on with what waits to be sent, after kWritten.
  void WriteNext();
  // Ends the call; `cancel`: without waiting for the teacher. Other methods do nothing afterwards. May be called again.
  void Close(bool cancel);

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  void Send(grpc::ByteBuffer message);
  const std::string address_;
  const std::function<void(Event)> post_;
  const std::shared_ptr<grpc::Channel> channel_;  // shared with gRPC's call
  const std::string shared_memory_folder_;
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::ByteBuffer read_;   // gRPC's between StartRead and OnReadDone
  grpc::ByteBuffer write_;  // gRPC's between StartWrite and OnWriteDone
  // Messages posted and not yet handled; atomic: counted up by gRPC's threads, down by the loop, which may be the first
  // of the two. At the most there may be, no read is under way, and the loop starts the next one.
  std::atomic<int> unhandled_{0};
  // Loop only.
  std::deque<grpc::ByteBuffer> queue_;
  bool writing_ = false;
  bool closed_ = false;
  uint64_t most_ring_bytes_ = 0;                     // that may be offered; 0 when nothing may (any more)
  uint64_t ring_bytes_ = 0;                          // that were offered
  std::optional<StatusOr<DescriptorRequest>> join_;  // while joining
  std::chrono::steady_clock::time_point join_deadline_;
  std::shared_ptr<const RingReader> ring_;  // shared with the payloads that lie in it
  uint64_t read_bytes_ = 0;                 // of the ring, not yet returned
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_FEATURE_TEACHER_CONNECTION_H_
