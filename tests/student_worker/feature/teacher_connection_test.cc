#include "student_worker/feature/teacher_connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "tests/student_worker/feature/test_teacher.h"

namespace distill {
namespace {

using Event = TeacherConnection::Event;

// Messages are read ahead of the loop, by whichever of gRPC's threads is free. One of them loses its processor just
// before it posts, while the loop has done with earlier messages and has the next one read.
TEST(TeacherConnectionTest, ChunksStayInOrderWhenAThreadIsHeldUp) {
  const auto teacher = testing::TestTeacher::Start({.chunk_bytes = 8});
  absl::Mutex mutex;
  std::deque<Event> events;
  std::atomic<int> chunks{0};
  const std::string address = teacher->endpoint().address;
  TeacherConnection connection(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()), address,
                               [&](Event event) {
                                 if (event.kind == Event::Kind::kChunk && ++chunks % 4 == 0) {
                                   std::this_thread::sleep_for(std::chrono::milliseconds(20));
                                 }
                                 absl::MutexLock lock(&mutex);
                                 events.push_back(std::move(event));
                               });
  connection.Start({testing::kModel, testing::kDigest, "test", {{"maps"}}, false, 1 << 20});
  connection.SendBatch(7, {2, 3, 4, 4, Buffer::FromVector(std::vector<uint8_t>(2 * 3 * 4 * 4, 1))});

  uint64_t due = 0;  // of 384 bytes
  for (bool closed = false; !closed;) {
    std::deque<Event> taken;
    {
      absl::MutexLock lock(&mutex);
      const auto three = [&] { return events.size() >= 3; };  // so that as many are read ahead as may be
      mutex.AwaitWithTimeout(absl::Condition(&three), absl::Milliseconds(10));
      taken.swap(events);
    }
    for (Event& event : taken) {
      switch (event.kind) {
        case Event::Kind::kChunk:
          ASSERT_TRUE(event.chunk.ok()) << event.chunk.status();
          EXPECT_EQ(event.chunk->offset, due);
          due = event.chunk->offset + event.chunk->payload.size;
          connection.Handled();
          if (event.chunk->last) connection.Close(/*cancel=*/true);
          break;
        case Event::Kind::kOffer:
          FAIL() << "shared memory was not asked for";
        case Event::Kind::kReadEnd:
          connection.Close(/*cancel=*/false);
          break;
        case Event::Kind::kWritten:
          connection.WriteNext();
          break;
        case Event::Kind::kClosed:
          closed = true;
          break;
      }
    }
  }
  EXPECT_EQ(due, 384);
}

}  // namespace
}  // namespace distill
