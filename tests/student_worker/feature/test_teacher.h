// A FeatureService on 127.0.0.1 whose "network" is arithmetic that a test can redo, and that can be told to fail in
// every way.
#ifndef DISTILL_TESTS_STUDENT_WORKER_FEATURE_TEST_TEACHER_H_
#define DISTILL_TESTS_STUDENT_WORKER_FEATURE_TEST_TEACHER_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "common/wire/feature_batch.h"

namespace distill::testing {

inline constexpr char kModel[] = "arithmetic";
inline constexpr char kDigest[] = "d1";

// What the model computes. Taps: "maps" [N, C, H, W] = pixel * 0.5 + 1; "" (logits) [N, C] = mean over H, W of each
// channel.
std::vector<float> ReferenceTap(const std::string& tap, const ImageBatch& images);

// Faults, each committed on the answer to the batch with number `fault_at` and later ones (counted from 0 over all
// streams).
enum class Fault {
  kNone,
  kDieMidAnswer,    // first chunk, then the whole server goes away
  kEndStream,       // the call ends with UNAVAILABLE, as when draining
  kSilence,         // reads on, answers nothing
  kDuplicate,       // the whole answer twice
  kUnknownRequest,  // an answer nobody asked for
  kWrongShape,      // [N + 1, ...]
  kWrongTail,       // consistent in itself, but other features per image
  kWrongDtype,
  kWrongTotal,        // total_bytes larger than the shape
  kHugeTotal,         // shape and total of 4 GiB
  kOverflowShape,     // a shape whose product overflows 64 bits to the right total
  kOverlap,           // second chunk starts before the first one's end
  kGap,               // second chunk starts after it
  kTooMuch,           // bytes beyond the total
  kEmptyChunks,       // chunks without payload
  kSwappedTaps,       // last tap first
  kLastTooEarly,      // `last` in the first tap
  kNeverLast,         // `last` nowhere
  kWrongDigest,       // in the answers
  kErrorInternal,     // error in the answer
  kErrorInvalid,      // error in the answer, INVALID_ARGUMENT
  kErrorUnavailable,  // error in the answer, UNAVAILABLE
  kNotFinite,         // right but for one number, which is none
  kTrickle,           // a byte at a time, 20 ms apart
  kErrorMidAnswer,    // a chunk, then an INTERNAL error
  kRefuseTap,         // the call ends with INVALID_ARGUMENT before anything is answered
  kRefuseModel,       // NOT_FOUND
  kRefuseDigest,      // FAILED_PRECONDITION
  // With shared memory only.
  kPieceBeyondRing,  // begins inside, ends behind it
  kPieceOverflow,    // offset and size that overflow 64 bits to a place inside
  kPieceTooLarge,    // in the ring, more than the rest of the tensor
  kPieceAndPayload,  // both
  kSecondOffer,      // in the middle of an answer
};

// What is wrong with the memory that it offers.
enum class BadMemory {
  kNo,
  kNotSealed,    // its size could change
  kOtherSize,    // than announced
  kWrongSecret,  // not the one that it is to be had for
  kWrongSocket,  // nobody is there
  kPath,         // another program's socket in the place of a name
  kMoreThanAsked,
};

// Thread-safe.
class TestTeacher {
 public:
  struct Options {
    std::string name = "t0";
    int port = 0;
    size_t chunk_bytes = 64;
    Fault fault = Fault::kNone;
    int fault_at = 0;
    int fault_until = 1 << 30;   // number of the first batch that is answered well again
    bool hold = false;           // starts with answers held back
    bool channels_last = false;  // its maps lie so
    bool shared_memory = false;  // offers a ring to who asks for one, and answers when it is mapped or declined
    BadMemory bad_memory = BadMemory::kNo;
    bool piece_without_ring = false;  // answers through a ring that it never offered
    std::string shared_memory_folder;
    std::chrono::milliseconds delay{0};  // before each answer
    // Called at each grant with the stream's and all teachers' bytes granted so far.
    std::function<void(uint64_t)> on_credit;
  };
  static std::unique_ptr<TestTeacher> Start(Options options);
  virtual ~TestTeacher() = default;  // Kill()

  virtual TeacherEndpoint endpoint() const = 0;
  virtual int port() const = 0;
  // Closes the port and breaks all streams at once.
  virtual void Kill() = 0;
  // Batches are received but not answered while held.
  virtual void Hold(bool hold) = 0;
  virtual int received() const = 0;
  virtual int answered() const = 0;
  virtual int streams() const = 0;
  virtual int canceled_streams() const = 0;
  // Streams that have mapped its memory, and those that said they cannot.
  virtual int mapped() const = 0;
  virtual int declined() const = 0;
  // Waits (at most a minute; then false).
  virtual bool WaitForReceived(int count) = 0;
  virtual bool WaitForStreams(int count) = 0;
};

// A gRPC server that answers every call with messages that are not protobuf.
class BabblingServer {
 public:
  static std::unique_ptr<BabblingServer> Start();
  virtual ~BabblingServer() = default;
  virtual TeacherEndpoint endpoint() const = 0;
};

}  // namespace distill::testing

#endif  // DISTILL_TESTS_STUDENT_WORKER_FEATURE_TEST_TEACHER_H_
