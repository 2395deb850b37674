#include "tests/student_worker/feature/test_teacher.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "common/rpc/server.h"
#include "common/shared_memory/descriptor_server.h"
#include "common/shared_memory/memory_ring.h"
#include "common/str_cat.h"
#include "distill/v1/features.grpc.pb.h"

namespace distill::testing {

std::vector<float> ReferenceTap(const std::string& tap, const ImageBatch& images) {
  const size_t plane = size_t{images.h} * images.w;
  std::vector<float> values;
  for (size_t i = 0; i < size_t{images.n} * images.c; ++i) {
    float sum = 0;
    for (size_t j = 0; j < plane; ++j) {
      const float pixel = images.pixels.data[i * plane + j];
      if (tap == "maps") values.push_back(pixel * 0.5f + 1);
      sum += pixel;
    }
    if (tap.empty()) values.push_back(sum / plane);
  }
  return values;
}

namespace {

// (N, C, H, W) -> (N, H, W, C).
std::vector<float> ChannelsLast(const std::vector<float>& values, const ImageBatch& images) {
  const size_t plane = size_t{images.h} * images.w;
  std::vector<float> moved;
  for (size_t n = 0; n < images.n; ++n) {
    for (size_t p = 0; p < plane; ++p) {
      for (size_t c = 0; c < images.c; ++c) moved.push_back(values[(n * images.c + c) * plane + p]);
    }
  }
  return moved;
}

class TestTeacherImpl final : public TestTeacher, public v1::FeatureService::Service {
 public:
  explicit TestTeacherImpl(Options options) : options_(std::move(options)), hold_(options_.hold) {}
  ~TestTeacherImpl() override { Kill(); }

  bool Listen() {
    if (options_.shared_memory) {
      auto rings = DescriptorServer::Start(options_.shared_memory_folder);
      if (!rings.ok()) return false;
      rings_ = *std::move(rings);
    }
    auto server = RpcServer::Start({.listen = StrCat("127.0.0.1:", options_.port)}, {this});
    if (!server.ok()) return false;
    server_ = *std::move(server);
    port_ = server_->port();
    return true;
  }

  TeacherEndpoint endpoint() const override { return {options_.name, StrCat("127.0.0.1:", port_), kModel, kDigest}; }
  int port() const override { return port_; }

  void Kill() override {
    {
      absl::MutexLock lock(&mu_);
      killed_ = true;
    }
    // Not under the lock: stopping waits for handlers, which may be in Die().
    std::thread killer;
    std::unique_ptr<RpcServer> server;
    {
      absl::MutexLock lock(&kill_mu_);
      killer.swap(killer_);
      server.swap(server_);
    }
    if (killer.joinable()) killer.join();
    if (server != nullptr) server->Stop(std::chrono::milliseconds(0));
  }
  void Hold(bool hold) override {
    absl::MutexLock lock(&mu_);
    hold_ = hold;
  }
  int received() const override { return Read(&received_); }
  int answered() const override { return Read(&answered_); }
  int streams() const override { return Read(&streams_); }
  int canceled_streams() const override { return Read(&canceled_); }
  int mapped() const override { return Read(&mapped_); }
  int declined() const override { return Read(&declined_); }
  bool WaitForReceived(int count) override { return WaitFor(&received_, count); }
  bool WaitForStreams(int count) override { return WaitFor(&streams_, count); }

  grpc::Status StreamFeatures(grpc::ServerContext* context,
                              grpc::ServerReaderWriter<v1::FeatureResponse, v1::FeatureRequest>* stream) override {
    Count(&streams_);
    grpc::Status status = Serve(context, stream);
    if (context->IsCancelled()) Count(&canceled_);
    return status;
  }

 private:
  using Stream = grpc::ServerReaderWriter<v1::FeatureResponse, v1::FeatureRequest>;

  int Read(const int* counter) const {
    absl::MutexLock lock(&mu_);
    return *counter;
  }
  int Count(int* counter) {
    absl::MutexLock lock(&mu_);
    return (*counter)++;
  }
  bool WaitFor(const int* counter, int count) {
    absl::MutexLock lock(&mu_);
    auto reached = [&] { return *counter >= count; };
    return mu_.AwaitWithTimeout(absl::Condition(&reached), absl::Minutes(1));
  }

  // The ring of one stream.
  struct Ring {
    std::shared_ptr<RingWriter> writer;
    bool mapped = false;
  };

  // Offers a ring. False: the stream is over.
  bool Offer(Stream* stream, uint64_t most, Ring* ring) {
    const uint64_t bytes = std::min(most, kLeastRingBytes);
    ring->writer = RingWriter::Create(bytes).value();
    OwnedFd open_size(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (ftruncate(open_size.get(), static_cast<off_t>(bytes)) != 0) return false;
    const bool sealed = options_.bad_memory != BadMemory::kNotSealed;
    v1::FeatureResponse response;
    v1::SharedMemoryOffer* const offer = response.mutable_shared_memory()->mutable_offer();
    offer->set_socket(rings_->name());
    offer->set_secret(rings_->Offer(sealed ? ring->writer->fd() : open_size.get()).value());
    offer->set_bytes(bytes);
    switch (options_.bad_memory) {
      case BadMemory::kOtherSize:
        offer->set_bytes(bytes / 2);
        break;
      case BadMemory::kWrongSecret:
        offer->set_secret(std::string(offer->secret().size(), 'x'));
        break;
      case BadMemory::kWrongSocket:
        offer->set_socket("distill-" + std::string(32, '0'));
        break;
      case BadMemory::kPath:
        offer->set_socket("/run/another.sock");
        break;
      case BadMemory::kMoreThanAsked:
        offer->set_bytes(most + 1);
        break;
      default:
        break;
    }
    return stream->Write(response);
  }

  // Moves the payload there, if there is room.
  static void Put(Ring* ring, Fault fault, v1::FeatureResponse* chunk) {
    if (!ring->mapped || chunk->payload().empty() || chunk->payload().size() > ring->writer->room()) return;
    const RingPiece piece = ring->writer->Take(chunk->payload().size());
    ring->writer->Fill(piece, reinterpret_cast<const uint8_t*>(chunk->payload().data()));
    v1::SharedMemoryPiece* const out = chunk->mutable_shared_memory()->mutable_piece();
    out->set_offset(piece.offset);
    out->set_size(piece.size);
    switch (fault) {
      case Fault::kPieceBeyondRing:
        out->set_offset(ring->writer->bytes() - piece.size + 1);
        break;
      case Fault::kPieceOverflow:
        out->set_offset(UINT64_MAX - 7);
        out->set_size(16);
        break;
      case Fault::kPieceTooLarge:
        out->set_offset(0);
        out->set_size(ring->writer->bytes());
        break;
      case Fault::kPieceAndPayload:
        return;
      case Fault::kSecondOffer:
        out->Clear();
        chunk->mutable_shared_memory()->mutable_offer()->set_bytes(ring->writer->bytes());
        break;
      default:
        break;
    }
    chunk->clear_payload();
  }

  grpc::Status Serve(grpc::ServerContext* context, Stream* stream) {
    v1::FeatureRequest request;
    if (!stream->Read(&request) || !request.has_open()) return {grpc::StatusCode::INVALID_ARGUMENT, "no open message"};
    const v1::OpenStream open = request.open();
    switch (options_.fault) {
      case Fault::kRefuseTap:
        return {grpc::StatusCode::INVALID_ARGUMENT, "unknown tap 'maps'"};
      case Fault::kRefuseModel:
        return {grpc::StatusCode::NOT_FOUND, "unknown model"};
      case Fault::kRefuseDigest:
        return {grpc::StatusCode::FAILED_PRECONDITION, "digest differs"};
      default:
        break;
    }
    for (const v1::TapRequest& tap : open.taps()) {
      if (tap.tap() != "maps" && !tap.tap().empty())
        return {grpc::StatusCode::INVALID_ARGUMENT, "unknown tap '" + tap.tap() + "'"};
    }
    Ring ring;
    std::deque<v1::FeatureRequest> early;  // said before what becomes of the ring was
    if (options_.piece_without_ring) {
      ring.writer = RingWriter::Create(kLeastRingBytes).value();
      ring.mapped = true;
    } else if (options_.shared_memory && open.shared_memory_bytes() >= kLeastRingBytes) {
      if (!Offer(stream, open.shared_memory_bytes(), &ring)) return grpc::Status::CANCELLED;
      while (stream->Read(&request) && request.kind_case() != v1::FeatureRequest::kSharedMemoryMapped) {
        early.push_back(request);
      }
      ring.mapped = request.shared_memory_mapped();
      Count(ring.mapped ? &mapped_ : &declined_);
    }
    uint64_t credit = open.credit_bytes();
    const auto next = [&] {
      if (early.empty()) return stream->Read(&request);
      request = std::move(early.front());
      early.pop_front();
      return true;
    };
    while (next()) {
      if (request.kind_case() == v1::FeatureRequest::kSharedMemoryReturned) {
        if (!ring.mapped || !ring.writer->Return(request.shared_memory_returned())) {
          return {grpc::StatusCode::INVALID_ARGUMENT, "more was returned than there was"};
        }
        continue;
      }
      if (request.kind_case() == v1::FeatureRequest::kCreditBytes) {
        credit += request.credit_bytes();
        if (options_.on_credit) options_.on_credit(request.credit_bytes());
        continue;
      }
      if (!request.has_batch()) continue;
      const int number = Count(&received_);
      const Fault fault = number >= options_.fault_at && number < options_.fault_until ? options_.fault : Fault::kNone;
      if (fault == Fault::kSilence || !WaitWhileHeld(context)) continue;
      absl::SleepFor(absl::FromChrono(options_.delay));
      const auto answer = MakeAnswer(open, request);
      uint64_t bytes = 0;
      for (const auto& chunk : answer) bytes += chunk.payload().size();
      // The client grants before it asks; an answer without credit would be a fault of the client.
      if (bytes > credit) return {grpc::StatusCode::INTERNAL, StrCat("no credit: answer ", bytes, ", credit ", credit)};
      grpc::Status end = Answer(fault, stream, answer, &credit, &ring);
      if (!end.ok()) return end;
      Count(&answered_);
    }
    return grpc::Status::OK;
  }

  bool WaitWhileHeld(grpc::ServerContext* context) {
    absl::MutexLock lock(&mu_);
    auto resumed = [&] { return !hold_ || killed_; };
    while (!mu_.AwaitWithTimeout(absl::Condition(&resumed), absl::Milliseconds(10))) {
      if (context->IsCancelled()) return false;
    }
    return !killed_;
  }

  std::vector<v1::FeatureResponse> MakeAnswer(const v1::OpenStream& open, const v1::FeatureRequest& request) const {
    const auto& shape = request.batch().shape();
    const std::string& pixels = request.payload();
    const ImageBatch images{shape[0], shape[1], shape[2], shape[3],
                            Buffer{reinterpret_cast<const uint8_t*>(pixels.data()), pixels.size(), nullptr}};
    std::vector<v1::FeatureResponse> chunks;
    for (int t = 0; t < open.taps_size(); ++t) {
      const bool last = options_.channels_last && open.taps(t).tap() == "maps";
      std::vector<float> values = ReferenceTap(open.taps(t).tap(), images);
      if (last) values = ChannelsLast(values, images);
      const std::string bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
      for (size_t offset = 0; offset < bytes.size(); offset += options_.chunk_bytes) {
        v1::FeatureResponse& chunk = chunks.emplace_back();
        chunk.set_request_id(request.batch().request_id());
        chunk.set_tap_index(t);
        chunk.set_offset(offset);
        chunk.set_payload(bytes.substr(offset, options_.chunk_bytes));
        if (offset > 0) continue;  // the rest stands in the first chunk only
        chunk.add_shape(images.n);
        chunk.add_shape(images.c);
        if (open.taps(t).tap() == "maps") {
          chunk.add_shape(images.h);
          chunk.add_shape(images.w);
        }
        chunk.set_dtype(v1::WIRE_DTYPE_F32);
        if (last) chunk.set_layout(v1::TENSOR_LAYOUT_CHANNELS_LAST);
        chunk.set_total_bytes(bytes.size());
        chunk.set_model_digest(kDigest);
      }
    }
    chunks.back().set_last(true);
    chunks.back().set_queue_seconds(0.25);
    chunks.back().set_compute_seconds(0.5);
    return chunks;
  }

  grpc::Status Answer(Fault fault, Stream* stream, std::vector<v1::FeatureResponse> chunks, uint64_t* credit,
                      Ring* ring) {
    auto& first = chunks[0];
    auto error = [&](grpc::StatusCode code) {
      v1::FeatureResponse answer;
      answer.set_request_id(first.request_id());
      answer.set_error("the teacher's own words");
      answer.set_error_code(code);
      chunks.assign(1, answer);
    };
    auto find_last = [&] {
      return std::find_if(chunks.begin(), chunks.end(), [](const auto& chunk) { return chunk.last(); });
    };
    switch (fault) {
      case Fault::kDieMidAnswer:
        Put(ring, fault, &first);
        stream->Write(first);
        Die();
        return {grpc::StatusCode::UNAVAILABLE, "gone"};
      case Fault::kEndStream:
        return {grpc::StatusCode::UNAVAILABLE, "draining"};
      case Fault::kDuplicate: {
        const auto once = chunks;
        chunks.insert(chunks.end(), once.begin(), once.end());
        break;
      }
      case Fault::kUnknownRequest:
        for (auto& chunk : chunks) chunk.set_request_id(chunk.request_id() + 1000);
        break;
      case Fault::kWrongShape:
        first.set_shape(0, first.shape(0) + 1);
        break;
      case Fault::kWrongTail:
        first.set_shape(1, first.shape(1) * 2);
        first.set_total_bytes(first.total_bytes() * 2);
        break;
      case Fault::kWrongDtype:
        first.set_dtype(v1::WIRE_DTYPE_F16);
        break;
      case Fault::kWrongTotal:
        first.set_total_bytes(first.total_bytes() + 4);
        break;
      case Fault::kHugeTotal:
        first.set_shape(1, 1u << 30);
        first.set_total_bytes(uint64_t{4} << 30);
        break;
      case Fault::kOverflowShape: {
        const uint32_t n = first.shape(0);
        first.clear_shape();
        for (uint32_t side : {n, 1u << 31, 1u << 31, 4u}) first.add_shape(side);
        first.set_total_bytes(0);
        break;
      }
      case Fault::kOverlap:
        chunks[1].set_offset(chunks[1].offset() - 4);
        break;
      case Fault::kGap:
        chunks[1].set_offset(chunks[1].offset() + 4);
        break;
      case Fault::kTooMuch:
        find_last()->mutable_payload()->append(64, 'x');
        break;
      case Fault::kEmptyChunks:
        first.clear_payload();
        chunks.insert(chunks.begin(), 100, first);
        break;
      case Fault::kSwappedTaps: {
        const auto second_tap =
            std::find_if(chunks.begin(), chunks.end(), [](const auto& chunk) { return chunk.tap_index() == 1; });
        std::rotate(chunks.begin(), second_tap, chunks.end());
        break;
      }
      case Fault::kLastTooEarly:
        first.set_last(true);
        break;
      case Fault::kNeverLast:
        find_last()->set_last(false);
        break;
      case Fault::kWrongDigest:
        for (auto& chunk : chunks) chunk.set_model_digest("another");
        break;
      case Fault::kErrorInternal:
        error(grpc::StatusCode::INTERNAL);
        break;
      case Fault::kErrorInvalid:
        error(grpc::StatusCode::INVALID_ARGUMENT);
        break;
      case Fault::kErrorUnavailable:
        error(grpc::StatusCode::UNAVAILABLE);
        break;
      case Fault::kNotFinite:
        first.mutable_payload()->replace(4, 4, std::string("\0\0\x80\x7f", 4));
        break;
      case Fault::kTrickle:
        for (const auto& chunk : chunks) {
          for (size_t i = 0; i < chunk.payload().size(); ++i) {
            v1::FeatureResponse byte = chunk;
            byte.set_payload(chunk.payload().substr(i, 1));
            byte.set_offset(chunk.offset() + i);
            byte.set_last(chunk.last() && i + 1 == chunk.payload().size());
            absl::SleepFor(absl::Milliseconds(20));
            if (!stream->Write(byte)) return {grpc::StatusCode::CANCELLED, "client gone"};
          }
        }
        return grpc::Status::OK;
      case Fault::kErrorMidAnswer: {
        const auto chunk = first;
        error(grpc::StatusCode::INTERNAL);
        chunks.insert(chunks.begin(), chunk);
        break;
      }
      default:
        break;
    }
    for (auto& chunk : chunks) {
      *credit -= std::min<uint64_t>(*credit, chunk.payload().size());
      // At the ring's end a chunk is cut in two.
      if (const uint64_t room = ring->mapped ? ring->writer->room() : 0; room > 0 && room < chunk.payload().size()) {
        v1::FeatureResponse front = chunk;
        front.set_payload(chunk.payload().substr(0, room));
        front.set_last(false);
        Put(ring, fault, &front);
        if (!stream->Write(front)) return {grpc::StatusCode::CANCELLED, "client gone"};
        chunk.set_payload(chunk.payload().substr(room));
        chunk.set_offset(chunk.offset() + room);
      }
      Put(ring, fault, &chunk);
      if (!stream->Write(chunk)) return {grpc::StatusCode::CANCELLED, "client gone"};
    }
    return grpc::Status::OK;
  }

  // From a handler: the server cannot be stopped on this thread, which it waits for.
  void Die() {
    absl::MutexLock lock(&kill_mu_);
    if (killer_.joinable() || server_ == nullptr) return;
    killer_ = std::thread([server = server_.get()] { server->Stop(std::chrono::milliseconds(0)); });
  }

  const Options options_;
  int port_ = 0;
  std::unique_ptr<DescriptorServer> rings_;
  absl::Mutex kill_mu_;  // server_, killer_
  std::unique_ptr<RpcServer> server_;
  std::thread killer_;
  mutable absl::Mutex mu_;  // all below
  bool hold_;
  bool killed_ = false;
  int received_ = 0, answered_ = 0, streams_ = 0, canceled_ = 0, mapped_ = 0, declined_ = 0;
};

class BabblingServerImpl final : public BabblingServer, public grpc::CallbackGenericService {
 public:
  bool Listen() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterCallbackGenericService(this);
    server_ = builder.BuildAndStart();
    return server_ != nullptr;
  }
  ~BabblingServerImpl() override { server_->Shutdown(std::chrono::system_clock::now()); }
  TeacherEndpoint endpoint() const override { return {"babbler", StrCat("127.0.0.1:", port_), kModel, kDigest}; }

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    class Reactor final : public grpc::ServerGenericBidiReactor {
     public:
      Reactor() { StartRead(&read_); }
      void OnReadDone(bool ok) override {
        if (!ok || ++reads_ == 3) return Finish(grpc::Status::OK);
        grpc::Slice junk("\xFF\xFF\xFF\xFF junk");
        write_ = grpc::ByteBuffer(&junk, 1);
        StartWrite(&write_);
      }
      void OnWriteDone(bool) override { StartRead(&read_); }
      void OnDone() override { delete this; }

     private:
      grpc::ByteBuffer read_, write_;
      int reads_ = 0;
    };
    return new Reactor;
  }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

std::unique_ptr<TestTeacher> TestTeacher::Start(Options options) {
  auto teacher = std::make_unique<TestTeacherImpl>(std::move(options));
  return teacher->Listen() ? std::move(teacher) : nullptr;
}

std::unique_ptr<BabblingServer> BabblingServer::Start() {
  auto server = std::make_unique<BabblingServerImpl>();
  return server->Listen() ? std::move(server) : nullptr;
}

}  // namespace distill::testing
