#include "student_worker/data/pattern_files.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/str_cat.h"
#include "student_worker/data/file_kind.h"
#include "student_worker/data/file_tree.h"

namespace distill {
namespace {

class PatternWalk {
 public:
  PatternWalk(const std::string& root, const FileTree& tree, const PathPattern& pattern, DataReport* report)
      : root_(root), tree_(tree), pattern_(pattern), report_(report) {}

  // Goes through `folder`, of the path `path`, in which part number `depth` of the pattern is looked for.
  Status Visit(const TreeNode& folder, const std::string& path, size_t depth) {
    DISTILL_ASSIGN_OR_RETURN(const std::vector<TreeNode> nodes, tree_.List(folder));
    const PathPattern::Part& part = pattern_.parts()[depth];
    const bool last = depth + 1 == pattern_.parts().size();
    bool found = false;
    for (const TreeNode& node : nodes) {
      DISTILL_RETURN_IF_ERROR(report_->wanted());
      const std::optional<std::string> star = part.Match(node.name);
      if (!star) {
        if (last && node.kind == TreeNode::Kind::kFile && IsImageName(node.name) && !IsLitterName(node.name)) {
          files_.others.push_back(node.where);
        }
        continue;
      }
      if (part.has_star() && IsLitterName(node.name)) {
        if (last && IsImageName(node.name)) report_->Warn(kLitterPicture, node.where);
        continue;
      }
      found = true;
      const std::string place = path.empty() ? node.name : StrCat(path, "/", node.name);
      if (part.has_star()) stars_.push_back(*star);
      if (last) {
        Keep(node, place);
      } else if (node.kind == TreeNode::Kind::kFolder) {
        DISTILL_RETURN_IF_ERROR(Visit(node, place, depth + 1));
      } else if (node.kind == TreeNode::Kind::kLost || node.kind == TreeNode::Kind::kOutside) {
        RefuseLink(root_, "", node, report_);
      }
      if (part.has_star()) stars_.pop_back();
    }
    if (!found && !last && files_.missing.empty()) files_.missing = StrCat(folder.where, "/", part.text());
    return OkStatus();
  }

  PatternFiles Take() {
    if (!files_.matches.empty()) files_.missing.clear();
    return std::move(files_);
  }

 private:
  void Keep(const TreeNode& node, const std::string& path) {
    const bool is_file = node.kind == TreeNode::Kind::kFile;
    if (node.kind == TreeNode::Kind::kLost || node.kind == TreeNode::Kind::kOutside) {
      RefuseLink(root_, "", node, report_);
    } else if (!is_file) {
      report_->Refuse({"named like pictures, but no files", "remove them", StatusCode::kFailedPrecondition},
                      node.where);
    }
    files_.matches.emplace(absl::StrJoin(stars_, "/"),
                           ImageFile{.name = path, .where = node.where, .size = node.size, .refused = !is_file});
  }

  const std::string& root_;
  const FileTree& tree_;
  const PathPattern& pattern_;
  DataReport* const report_;
  std::vector<std::string> stars_;  // of the folders that are open
  PatternFiles files_;
};

}  // namespace

StatusOr<PatternFiles> FindPatternFiles(const std::string& root, const std::string& folder, const PathPattern& pattern,
                                        DataReport* report) {
  const std::unique_ptr<FileTree> tree = OpenFolderTree(root, folder);
  PatternWalk walk(root, *tree, pattern, report);
  DISTILL_RETURN_IF_ERROR(walk.Visit(tree->Root(), "", 0));
  return walk.Take();
}

}  // namespace distill
