#include "common/zoo/archive_ref.h"

#include "common/str_cat.h"

namespace distill {
namespace {

constexpr std::string_view kMark = "@sha256:";
constexpr size_t kShortDigest = 12;

}  // namespace

std::string ArchOf(const ArchiveRef& archive) { return StrCat(archive.name, kMark, archive.digest); }

std::optional<ArchiveRef> ParseArchiveRef(std::string_view arch) {
  const size_t mark = arch.find(kMark);
  if (mark == std::string_view::npos) return std::nullopt;
  return ArchiveRef{std::string(arch.substr(0, mark)), std::string(arch.substr(mark + kMark.size()))};
}

std::string ShortArch(std::string_view arch) {
  const size_t mark = arch.find(kMark);
  return std::string(mark == std::string_view::npos ? arch : arch.substr(0, mark + kMark.size() + kShortDigest));
}

}  // namespace distill
