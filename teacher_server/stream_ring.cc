#include "teacher_server/stream_ring.h"

#include <algorithm>
#include <utility>

#include "common/str_cat.h"

namespace distill {

bool WantsRing(const StreamOpen& open, const std::string& boot_id) {
  return !boot_id.empty() && open.boot_id == boot_id && open.shared_memory_bytes >= kLeastRingBytes;
}

StatusOr<std::unique_ptr<StreamRing>> StreamRing::Create(DescriptorServer* server, MemoryBudget* budget,
                                                         const StreamOpen& open) {
  const uint64_t bytes = std::min(open.shared_memory_bytes, kMostRingBytes);
  if (!budget->TakeRing(bytes)) {
    return absl::ResourceExhaustedError(StrCat("rings have an eighth of the memory of all streams together, ",
                                               budget->bytes() / 8, " bytes, and ", bytes,
                                               " are not left of it; raise --memory-budget"));
  }
  StatusOr<std::shared_ptr<RingWriter>> writer = RingWriter::Create(bytes);
  // What rounding to pages left over goes back.
  budget->GiveRing(bytes - (writer.ok() ? (*writer)->bytes() : 0));
  if (!writer.ok()) return writer.status();
  StatusOr<std::string> secret = server->Offer((*writer)->fd());
  if (!secret.ok()) {
    budget->GiveRing((*writer)->bytes());
    return secret.status();
  }
  return std::unique_ptr<StreamRing>(new StreamRing(server, budget, *std::move(writer), *std::move(secret)));
}

StreamRing::StreamRing(DescriptorServer* server, MemoryBudget* budget, std::shared_ptr<RingWriter> writer,
                       std::string secret)
    : server_(server),
      budget_(budget),
      writer_(std::move(writer)),
      offer_{server->name(), std::move(secret), writer_->bytes()} {}

StreamRing::~StreamRing() {
  server_->Withdraw(offer_.secret);
  budget_->GiveRing(writer_->bytes());
}

}  // namespace distill
