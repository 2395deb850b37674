// IDX: big-endian header [0, 0, type, rank], then `rank` 32-bit sizes, then the elements. Only unsigned bytes (type 8)
// are read, of rank 3 for images [N, H, W] and rank 1 for labels [N]. http://yann.lecun.com/exdb/mnist/ describes the
// format.
#include <algorithm>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_format.h"
#include "common/str_cat.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/gzip_file.h"
#include "student_worker/data/split_request.h"

namespace distill {
namespace {

constexpr uint32_t kImageMagic = 0x00000803;
constexpr uint32_t kLabelMagic = 0x00000801;
constexpr uint32_t kMaxSide = 16384;
constexpr uint64_t kReadAtOnce = 4 << 20;

uint32_t BigEndian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

// `key`: the key of the job file that led here.
StatusOr<std::unique_ptr<GzipFile>> OpenIdx(const std::string& root, const std::string& folder, const std::string& stem,
                                            const char* key) {
  for (const std::string& name : {stem, stem + ".gz"}) {
    const auto path = ResolveBelow(root, (std::filesystem::path(folder) / name).string());
    if (path.ok()) return GzipFile::Open(*path);
    if (!absl::IsNotFound(path.status())) return path.status();
  }
  return absl::NotFoundError(StrCat("no file '", stem, "' or '", stem, ".gz' in '", folder,
                                    "'; put the IDX files there or correct ", key, " (data.format is idx)"));
}

// Reads and checks magic and sizes.
StatusOr<std::vector<uint32_t>> ReadHeader(GzipFile* file, uint32_t magic) {
  uint8_t bytes[16];
  const uint32_t rank = magic & 0xFF;
  DISTILL_RETURN_IF_ERROR(file->ReadExact(bytes, 4 + 4 * rank, "the IDX header"));
  if (BigEndian(bytes) != magic) {
    return absl::DataLossError(
        absl::StrFormat("'%s' has magic number 0x%08x, need 0x%08x (%s)", file->path(), BigEndian(bytes), magic,
                        magic == kImageMagic ? "unsigned bytes [N, H, W]" : "unsigned bytes [N]"));
  }
  std::vector<uint32_t> sizes;
  for (uint32_t i = 0; i < rank; ++i) sizes.push_back(BigEndian(bytes + 4 + 4 * i));
  if (sizes[0] == 0) return absl::DataLossError(StrCat("'", file->path(), "' holds no entries"));
  for (uint32_t i = 1; i < rank; ++i) {
    if (sizes[i] == 0 || sizes[i] > kMaxSide) {
      return absl::DataLossError(
          StrCat("'", file->path(), "' gives an image side of ", sizes[i], " pixels, need 1 to ", kMaxSide));
    }
  }
  return sizes;
}

// The elements, and nothing after them. The size comes from the header: refused before allocating when the file cannot
// hold it.
StatusOr<std::vector<uint8_t>> ReadElements(GzipFile* file, uint64_t size, const DataReport& report) {
  if (size > kMaxHeldBytes) {
    return absl::ResourceExhaustedError(
        StrCat("'", file->path(), "' holds ", size, " bytes of pixels, over the limit of ", kMaxHeldBytes));
  }
  if (size > file->MaxDataBytes()) {
    return absl::DataLossError(StrCat("'", file->path(), "' is truncated: its header announces ", size,
                                      " bytes, the file has ", file->file_bytes(), "; fetch it again"));
  }
  std::vector<uint8_t> bytes(size);
  for (uint64_t done = 0; done < size;) {
    DISTILL_RETURN_IF_ERROR(report.wanted());
    const uint64_t part = std::min(size - done, kReadAtOnce);
    DISTILL_RETURN_IF_ERROR(file->ReadExact(bytes.data() + done, part, "the data announced by the header"));
    done += part;
  }
  uint8_t more;
  DISTILL_ASSIGN_OR_RETURN(const size_t extra, file->Read(&more, 1));  // also makes zlib check the stream's end
  if (extra != 0) {
    return absl::DataLossError(StrCat("'", file->path(), "' goes on after the ", size, " bytes its header announces"));
  }
  return bytes;
}

}  // namespace

StatusOr<SplitIndex> ReadIdxSplit(const SplitRequest& request) {
  SplitIndex split;
  if (request.shrink != 1) {
    return absl::InvalidArgumentError(
        StrCat("data.shrink is ", request.shrink, ", but images of data.format idx stay as they are; leave it out"));
  }
  const bool labelled = request.kind != SplitKind::kUnlabelled;
  const char* const key = labelled ? "data.path" : "data.unlabelled";
  const std::string prefix = labelled && request.name == "test" ? "t10k" : request.name;
  auto images = OpenIdx(request.root, request.folder, prefix + "-images-idx3-ubyte", key);
  std::vector<uint8_t> labels;
  std::unique_ptr<GzipFile> label_file;
  std::vector<uint32_t> label_sizes;
  if (labelled) {
    auto opened = OpenIdx(request.root, request.folder, prefix + "-labels-idx1-ubyte", key);
    const bool missing = absl::IsNotFound(images.status()) && absl::IsNotFound(opened.status());
    if (missing && request.kind == SplitKind::kLabelledOrMissing) return split;
    DISTILL_RETURN_IF_ERROR(images.status());
    DISTILL_RETURN_IF_ERROR(opened.status());
    label_file = *std::move(opened);
  }
  DISTILL_RETURN_IF_ERROR(images.status());
  const std::unique_ptr<GzipFile> image_file = *std::move(images);
  DISTILL_ASSIGN_OR_RETURN(const auto image_sizes, ReadHeader(image_file.get(), kImageMagic));
  if (label_file != nullptr) {
    DISTILL_ASSIGN_OR_RETURN(label_sizes, ReadHeader(label_file.get(), kLabelMagic));
    if (image_sizes[0] != label_sizes[0]) {
      return absl::FailedPreconditionError(StrCat("'", image_file->path(), "' has ", image_sizes[0], " images, but '",
                                                  label_file->path(), "' has ", label_sizes[0],
                                                  " labels; they do not belong together"));
    }
  }
  const uint32_t count = image_sizes[0];
  split.channels = 1;
  split.height = image_sizes[1];
  split.width = image_sizes[2];
  split.found = count;
  const bool wanted = CheckShape(request, image_file->path(), split.channels, split.height, split.width);
  const uint64_t image_bytes = uint64_t{split.height} * split.width;
  if (label_file != nullptr) {
    DISTILL_ASSIGN_OR_RETURN(labels, ReadElements(label_file.get(), count, *request.report));
  }
  if (label_file != nullptr && request.want.classes > 0) {
    for (uint32_t i = 0; i < count; ++i) {
      if (labels[i] >= request.want.classes) {
        return absl::InvalidArgumentError(StrCat("label ", int{labels[i]}, " of image ", i, " in '", label_file->path(),
                                                 "' is not below the student's ", request.want.classes,
                                                 " classes; set num_classes"));
      }
    }
  }
  split.label_found.resize(256);
  IndexDigest digest;
  for (uint32_t i = 0; i < count; ++i) {
    if (label_file != nullptr) split.label_found[labels[i]] = true;
    digest.Add("", label_file == nullptr ? kNoLabel : labels[i], image_bytes, 0);
  }
  if (label_file == nullptr) split.label_found.clear();
  split.digest = digest.Hex();
  if (!wanted) return split;
  DISTILL_ASSIGN_OR_RETURN(std::vector<uint8_t> pixels,
                           ReadElements(image_file.get(), count * image_bytes, *request.report));

  const std::vector<uint32_t> chosen = request.subset(count);
  split.pixels.resize(chosen.size() * image_bytes);
  split.labels.reserve(chosen.size());
  for (size_t i = 0; i < chosen.size(); ++i) {
    std::memcpy(split.pixels.data() + i * image_bytes, pixels.data() + chosen[i] * image_bytes, image_bytes);
    split.labels.push_back(label_file == nullptr ? kNoLabel : labels[chosen[i]]);
  }
  return split;
}

}  // namespace distill
