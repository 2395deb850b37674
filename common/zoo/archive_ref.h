// How a plan names a student's archive: "NAME@sha256:DIGEST" as ModelSpec.arch, as images are named by tag and digest.
// NAME is that of the file in the students' model folders, DIGEST what it was registered with when the job was
// submitted. Names of the zoo hold no '@', and "torchscript" is an archive that is not pinned, as teachers serve it.
// Stateless; any thread.
#ifndef DISTILL_COMMON_ZOO_ARCHIVE_REF_H_
#define DISTILL_COMMON_ZOO_ARCHIVE_REF_H_

#include <optional>
#include <string>
#include <string_view>

namespace distill {

struct ArchiveRef {
  std::string name, digest;
  bool operator==(const ArchiveRef&) const = default;
};

std::string ArchOf(const ArchiveRef& archive);
// Nothing when `arch` names no archive.
std::optional<ArchiveRef> ParseArchiveRef(std::string_view arch);
// For messages: the digest's first twelve letters; other names as they are.
std::string ShortArch(std::string_view arch);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ARCHIVE_REF_H_
