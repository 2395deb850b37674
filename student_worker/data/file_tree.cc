#include "student_worker/data/file_tree.h"

#include <algorithm>
#include <filesystem>

#include "common/str_cat.h"
#include "student_worker/data/file_kind.h"
#include "student_worker/data/read_file.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

bool LiesIn(const fs::path& root, const fs::path& path) {
  return std::mismatch(root.begin(), root.end(), path.begin(), path.end()).first == root.end();
}

class FolderTree : public FileTree {
 public:
  FolderTree(const std::string& root, const std::string& path) : path_(path) {
    std::error_code error;
    root_ = fs::canonical(root, error);
  }

  TreeNode Root() const override {
    TreeNode node;
    node.kind = TreeNode::Kind::kFolder;
    node.where = path_;
    std::error_code error;
    node.identity = fs::canonical(path_, error).string();
    return node;
  }

  StatusOr<std::vector<TreeNode>> List(const TreeNode& folder) const override {
    std::vector<TreeNode> nodes;
    std::error_code error;
    for (fs::directory_iterator at(folder.where, error), end; !error && at != end; at.increment(error)) {
      nodes.push_back(Look(*at, folder));
    }
    if (error) return absl::NotFoundError(StrCat("cannot list '", folder.where, "': ", error.message()));
    std::sort(nodes.begin(), nodes.end(), [](const TreeNode& a, const TreeNode& b) { return a.name < b.name; });
    return nodes;
  }

  std::string Head(const TreeNode& file) const override {
    auto head = ReadFileHead(file.where, kHeadBytes);
    return head.ok() ? *std::move(head) : std::string();
  }

  std::shared_ptr<const std::string> Content(const TreeNode&) const override { return nullptr; }
  uint64_t Offset(const TreeNode&) const override { return kNoOffset; }

 private:
  TreeNode Look(const fs::directory_entry& entry, const TreeNode& folder) const {
    TreeNode node;
    node.name = entry.path().filename().string();
    node.where = entry.path().string();
    node.identity = StrCat(folder.identity, "/", node.name);
    std::error_code error;
    if (entry.is_symlink(error)) {
      node.target = fs::read_symlink(entry.path(), error).string();
      const fs::path real = fs::canonical(entry.path(), error);
      if (error) {
        // Whether it would lead out is of no interest: there is nothing.
        node.kind = TreeNode::Kind::kLost;
        return node;
      }
      if (!LiesIn(root_, real)) {
        node.kind = TreeNode::Kind::kOutside;
        return node;
      }
      node.identity = real.string();
    }
    if (entry.is_directory(error)) {
      node.kind = TreeNode::Kind::kFolder;
    } else if (entry.is_regular_file(error)) {
      node.kind = TreeNode::Kind::kFile;
      node.size = entry.file_size(error);
      if (error) node.size = 0;
    }
    return node;
  }

  const std::string path_;
  fs::path root_;
};

}  // namespace

std::unique_ptr<FileTree> OpenFolderTree(const std::string& root, const std::string& path) {
  return std::make_unique<FolderTree>(root, path);
}

}  // namespace distill
