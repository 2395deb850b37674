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
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "student_worker/feature/answer_assembler.h"

namespace distill {

// Lives until kClosed was posted, which happens exactly once and last, soon after Close() or after the teacher ended
// the call. All methods are for the pool's loop; the On* reactions run on gRPC's threads and only post.
class TeacherConnection final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  struct Event {
    enum class Kind {
      kChunk,    // one message; call Handled() when done with it
      kReadEnd,  // no more messages; the call is ending, call Close()
      kWritten,  // call WriteNext()
      kClosed,   // `status`: how the call ended; the object may be destroyed
    } kind;
    TeacherConnection* connection;
    StatusOr<FeatureChunk> chunk = FeatureChunk();  // kChunk; an error when the message cannot be parsed
    Status status;
  };
  struct OpenStream {
    std::string model, digest, client;
    std::vector<TapRequest> taps;
    bool exclusive_batches = false;
    uint64_t credit_bytes = 0;
  };

  // `post` must be callable from any thread until kClosed was posted.
  TeacherConnection(std::shared_ptr<grpc::Channel> channel, std::string address, std::function<void(Event)> post);

  // Starts the call and the first read. Once.
  void Start(const OpenStream& open);
  void SendCredit(uint64_t bytes);
  // References the pixels until gRPC has sent them.
  void SendBatch(uint64_t request_id, const ImageBatch& images);
  // Tells the teacher that the answer is not wanted any more. It may come all the same, or end with CANCELLED.
  void SendCancel(uint64_t request_id);
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
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_FEATURE_TEACHER_CONNECTION_H_
