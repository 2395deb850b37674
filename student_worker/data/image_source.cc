#include "student_worker/data/image_source.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <tuple>
#include <utility>

#include "common/str_cat.h"
#include "student_worker/data/archive_tree.h"
#include "student_worker/data/dataset.h"
#include "student_worker/data/file_kind.h"
#include "student_worker/data/file_tree.h"
#include "student_worker/data/read_file.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxDepth = 100;            // of folders
constexpr size_t kMaxFolderLinks = 100'000;  // followed: links in links multiply what they lead to

const FileFault kForeign{"pictures that are not read, because of their names or formats",
                         "only .jpg, .jpeg, .jpe, .jfif, .png and .webp are; convert or rename them, or remove them"};
const FileFault kLoop{"links back to a folder that holds them, left out", ""};

// Whether a link of this name can be meant as a picture or as a folder of pictures.
bool MayMatter(const std::string& name) {
  return IsImageName(name) || IsForeignImageName(name) || name.find('.') == std::string::npos;
}

class Walk {
 public:
  // `archive`: its path, or empty: a folder.
  Walk(const std::string& root, const FileTree& tree, std::string archive, ImageLayout layout, DataReport* report)
      : root_(root), tree_(tree), archive_(std::move(archive)), layout_(layout), report_(report) {}

  // Goes through `folder`, of the name `path` in the split ("" for the split itself), `depth` folders deep.
  Status Visit(const TreeNode& folder, const std::string& path, size_t depth, bool litter) {
    auto nodes = tree_.List(folder);
    if (!nodes.ok()) return litter ? OkStatus() : nodes.status();
    ancestors_.push_back(folder.identity);
    for (const TreeNode& node : *nodes) {
      DISTILL_RETURN_IF_ERROR(VisitNode(node, path, depth, litter || IsLitterName(node.name)));
    }
    ancestors_.pop_back();
    return OkStatus();
  }

  // Class folders without a picture, once all is visited.
  void RefuseEmptyClasses() {
    if (listing_.files.empty()) return;
    static const FileFault kEmpty{
        "class folders without a JPEG, PNG or WebP picture",
        "put their pictures there; or, if there is no such class, remove the folder from train and test alike, as an "
        "empty class would shift the numbers of those after it",
        StatusCode::kFailedPrecondition};
    for (const auto& [name, where] : class_places_) {
      if (!filled_.contains(name)) report_->Refuse(kEmpty, where);
    }
  }

  ImageListing Take() {
    for (const auto& [name, where] : class_places_) listing_.class_folders.push_back(name);
    std::sort(listing_.files.begin(), listing_.files.end(), [](const ImageFile& a, const ImageFile& b) {
      return std::tie(a.folder, a.name) < std::tie(b.folder, b.name);
    });
    return std::move(listing_);
  }

 private:
  Status VisitNode(const TreeNode& node, const std::string& path, size_t depth, bool litter) {
    DISTILL_RETURN_IF_ERROR(report_->wanted());
    const std::string place = path.empty() ? node.name : StrCat(path, "/", node.name);
    switch (node.kind) {
      case TreeNode::Kind::kFolder:
        if (std::find(ancestors_.begin(), ancestors_.end(), node.identity) != ancestors_.end()) {
          if (!litter) report_->Warn(kLoop, node.where, StrCat("to '", node.target, "'"));
          return OkStatus();
        }
        if (litter && (!node.target.empty() || depth >= kMaxDepth)) return OkStatus();
        if (depth >= kMaxDepth || (!node.target.empty() && ++links_ > kMaxFolderLinks)) {
          return absl::FailedPreconditionError(StrCat("'", node.where, "' is folder number ", depth,
                                                      " of a path, or more than ", kMaxFolderLinks,
                                                      " links to folders were followed; a data set's folders lie at "
                                                      "most ",
                                                      kMaxDepth, " deep"));
        }
        if (depth == 0 && !litter && layout_ == ImageLayout::kClassFolders) {
          class_places_.emplace_back(node.name, node.where);
        }
        return Visit(node, place, depth + 1, litter);
      case TreeNode::Kind::kFile:
        VisitFile(node, path, depth, litter);
        return OkStatus();
      case TreeNode::Kind::kLost:
      case TreeNode::Kind::kOutside:
        if (!litter && MayMatter(node.name)) RefuseLink(root_, archive_, node, report_);
        if (!litter && IsImageName(node.name)) Keep(node, path, depth, /*refused=*/true);
        return OkStatus();
      case TreeNode::Kind::kOther:
        if (!litter && IsImageName(node.name)) {
          report_->Refuse({"named like pictures, but no files", "remove them", StatusCode::kFailedPrecondition},
                          node.where);
          Keep(node, path, depth, /*refused=*/true);
        }
        return OkStatus();
    }
    return OkStatus();
  }

  void VisitFile(const TreeNode& node, const std::string& path, size_t depth, bool litter) {
    const bool image = IsImageName(node.name);
    if (litter) {
      if (image) report_->Warn(kLitterPicture, node.where);
      return;
    }
    if (!image) {
      const ContentKind kind = KindOfContent(tree_.Head(node), node.size);
      if (kind.is_picture || IsForeignImageName(node.name)) report_->Warn(kForeign, node.where, kind.name);
      return;
    }
    const bool right_place = layout_ == ImageLayout::kAnywhere || depth == (layout_ == ImageLayout::kFlat ? 0 : 1);
    if (!right_place) RefusePlace(node, depth);
    Keep(node, path, depth, /*refused=*/false);  // in a wrong place, too: the picture itself may be bad as well
  }

  void Keep(const TreeNode& node, const std::string& path, size_t depth, bool refused) {
    if (depth > 0 && layout_ == ImageLayout::kClassFolders) filled_.insert(path.substr(0, path.find('/')));
    ImageFile file{.folder = path, .name = node.name, .where = node.where, .size = node.size, .refused = refused};
    if (!refused) {
      file.content = tree_.Content(node);
      if (const uint64_t offset = tree_.Offset(node); offset != kNoOffset) {
        file.archive = archive_;
        file.offset = offset;
      }
    }
    listing_.files.push_back(std::move(file));
  }

  void RefusePlace(const TreeNode& node, size_t depth) {
    static const FileFault kInNone{
        "pictures in no class folder",
        "move them into one, or, if they have no label, out of the split into a folder of their own that "
        "data.unlabelled names",
        StatusCode::kFailedPrecondition};
    static const FileFault kDeeper{
        "pictures deeper than CLASS/NAME",
        "move them into their class folders (and pack archives from inside the split's folder)",
        StatusCode::kFailedPrecondition};
    static const FileFault kInOwn{
        "pictures in a folder of their own, where a segmentation folder keeps all of a split together", "move them up",
        StatusCode::kFailedPrecondition};
    const bool flat = layout_ == ImageLayout::kFlat;
    report_->Refuse(flat ? kInOwn : depth == 0 ? kInNone : kDeeper, node.where);
  }

  const std::string root_;
  const FileTree& tree_;
  const std::string archive_;
  const ImageLayout layout_;
  DataReport* const report_;
  ImageListing listing_;
  std::vector<std::string> ancestors_;                             // identities of the folders that are open
  std::vector<std::pair<std::string, std::string>> class_places_;  // name and place
  size_t links_ = 0;                                               // to folders, followed
  std::set<std::string> filled_;                                   // class folders with a picture at any depth
};

// The folder of an archive that stands for the split: that of its name, where the archive was packed from beside it.
// Nothing but that folder then lies at the archive's top, and of class folders one at least lies in it.
StatusOr<TreeNode> SplitFolder(const FileTree& tree, const std::string& split, ImageLayout layout) {
  const TreeNode root = tree.Root();
  DISTILL_ASSIGN_OR_RETURN(const std::vector<TreeNode> top, tree.List(root));
  const TreeNode* found = nullptr;
  for (const TreeNode& node : top) {
    if (IsLitterName(node.name)) continue;
    const bool folder = node.kind == TreeNode::Kind::kFolder;
    if (folder && node.name == split) {
      found = &node;
    } else if (folder || IsImageName(node.name)) {
      return root;
    }
  }
  if (found == nullptr || layout != ImageLayout::kClassFolders) return found == nullptr ? root : *found;
  DISTILL_ASSIGN_OR_RETURN(const std::vector<TreeNode> inner, tree.List(*found));
  const bool classes_in_it = std::any_of(inner.begin(), inner.end(), [](const TreeNode& node) {
    return node.kind == TreeNode::Kind::kFolder && !IsLitterName(node.name);
  });
  return classes_in_it ? *found : root;
}

}  // namespace

const FileFault kLitterPicture{"left out as litter of a desktop or an editor, though named like pictures", ""};

void RefuseLink(const std::string& root, const std::string& archive, const TreeNode& node, DataReport* report) {
  const std::string detail = StrCat("to '", node.target, "'");
  if (!archive.empty()) {
    report->Refuse({"links to what their archive does not hold",
                    "pack what they lead to along with them (tar --dereference stores it in their place)",
                    StatusCode::kFailedPrecondition},
                   node.where, detail);
  } else if (node.kind == TreeNode::Kind::kLost) {
    report->Refuse(
        {"links to what does not exist", "fetch what they lead to, or remove them", StatusCode::kFailedPrecondition},
        node.where, detail);
  } else {
    report->Refuse({StrCat("a link that leads out of the data root '", root, "'"),
                    "copy what it leads to there, or start the student with a data root that holds both",
                    StatusCode::kInvalidArgument},
                   node.where, detail);
  }
}

StatusOr<std::string> FindImageSource(const std::string& root, const std::string& folder, const std::string& name,
                                      DataReport* report) {
  std::string found;
  std::vector<std::string> others;
  for (const char* ending : {"", ".tar", ".tar.gz"}) {
    auto path = ResolveBelow(root, (fs::path(folder) / (name + ending)).string());
    if (absl::IsNotFound(path.status())) continue;
    if (!path.ok()) return path;
    if (found.empty()) {
      found = *std::move(path);
    } else {
      others.push_back(*std::move(path));
    }
  }
  if (!others.empty()) {
    report->Warn(StrCat("Of '", found, "' and ", NameSome(others), " only the first is read."));
  }
  return found;
}

StatusOr<ImageListing> ListImages(const std::string& root, const std::string& source, const std::string& split,
                                  ImageLayout layout, uint64_t max_bytes, DataReport* report) {
  std::error_code error;
  const bool in_archive = !fs::is_directory(source, error);
  std::unique_ptr<FileTree> tree;
  TreeNode top;
  if (in_archive) {
    DISTILL_ASSIGN_OR_RETURN(tree, OpenArchiveTree(source, max_bytes, report));
    DISTILL_ASSIGN_OR_RETURN(top, SplitFolder(*tree, split, layout));
  } else {
    tree = OpenFolderTree(root, source);
    top = tree->Root();
  }
  Walk walk(root, *tree, in_archive ? source : "", layout, report);
  DISTILL_RETURN_IF_ERROR(walk.Visit(top, "", 0, false));
  walk.RefuseEmptyClasses();
  ImageListing listing = walk.Take();
  if (listing.files.size() > UINT32_MAX) {
    return absl::ResourceExhaustedError(
        StrCat("'", source, "' holds ", listing.files.size(), " images; a data set may have ", UINT32_MAX));
  }
  return listing;
}

StatusOr<std::shared_ptr<const std::string>> ReadImageBytes(const ImageFile& file, uint64_t limit) {
  if (file.content != nullptr) return file.content;
  DISTILL_ASSIGN_OR_RETURN(std::string bytes,
                           file.archive.empty() ? ReadFileHead(file.where, limit)
                                                : ReadFileHead(file.archive, std::min(limit, file.size), file.offset));
  return std::make_shared<const std::string>(std::move(bytes));
}

}  // namespace distill
