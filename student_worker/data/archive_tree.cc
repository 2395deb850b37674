#include "student_worker/data/archive_tree.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/str_cat.h"
#include "student_worker/data/file_kind.h"
#include "student_worker/data/gzip_file.h"
#include "student_worker/data/tar_reader.h"

namespace distill {
namespace {

constexpr int kMaxLinks = 40;  // followed for one path, as Linux does
constexpr uint64_t kMaxMembers = 20'000'000;
constexpr size_t kMaxNameBytes = 4096;  // as a path on Linux

struct Member {
  TreeNode::Kind kind = TreeNode::Kind::kFolder;
  bool is_link = false;  // symbolic
  std::string target;
  uint64_t size = 0;
  uint64_t offset = kNoOffset;                 // see FileTree::Offset
  std::shared_ptr<const std::string> content;  // its head, or all of it where there is no offset; shared by hard links
};

std::vector<std::string> Split(const std::string& path) { return absl::StrSplit(path, '/', absl::SkipEmpty()); }

// "./a//b/" to "a/b"; nothing when it leads out of the archive.
std::optional<std::string> Normalised(const std::string& name) {
  std::vector<std::string> parts;
  for (std::string& part : Split(name)) {
    if (part == "..") return std::nullopt;
    if (part != ".") parts.push_back(std::move(part));
  }
  return absl::StrJoin(parts, "/");
}

std::string Inside(const std::string& folder, const std::string& name) {
  return folder.empty() ? name : StrCat(folder, "/", name);
}

class ArchiveTree : public FileTree {
 public:
  explicit ArchiveTree(std::string path) : path_(std::move(path)) { members_[""]; }

  Status Load(uint64_t max_bytes, DataReport* report) {
    DISTILL_ASSIGN_OR_RETURN(const auto file, GzipFile::Open(path_));
    TarReader tar(file.get());
    TarEntry entry;
    uint64_t total = 0;
    while (true) {
      DISTILL_RETURN_IF_ERROR(report->wanted());
      DISTILL_ASSIGN_OR_RETURN(const bool more, tar.Next(&entry));
      if (!more) return OkStatus();
      if (entry.name.size() > kMaxNameBytes) {
        return absl::DataLossError(
            StrCat("'", path_, "' has a member with a name of ", entry.name.size(), " bytes; at most ", kMaxNameBytes));
      }
      const std::optional<std::string> name = Normalised(entry.name);
      if (!name) {
        report->Refuse({"members whose names lead out of their archive", "pack it from inside its folder"},
                       StrCat(path_, ":", entry.name));
        continue;
      }
      if (name->empty()) continue;  // "./"
      DISTILL_ASSIGN_OR_RETURN(Member member, Take(entry, &tar, max_bytes, &total));
      Put(*name, std::move(member), report);
      if (members_.size() > kMaxMembers) {
        return absl::ResourceExhaustedError(StrCat("'", path_, "' has over ", kMaxMembers, " members"));
      }
    }
  }

  TreeNode Root() const override {
    TreeNode node;
    node.kind = TreeNode::Kind::kFolder;
    node.where = path_;
    return node;
  }

  StatusOr<std::vector<TreeNode>> List(const TreeNode& folder) const override {
    std::vector<TreeNode> nodes;
    const auto children = children_.find(folder.identity);
    if (children == children_.end()) return nodes;
    for (const std::string& name : children->second) {  // a set: sorted
      TreeNode node;
      node.name = name;
      node.where = StrCat(folder.where, folder.where == path_ ? ":" : "/", name);
      const std::string place = Inside(folder.identity, name);
      const Member& member = members_.at(place);
      node.target = member.target;
      const auto [kind, identity] = Resolve(place);
      node.kind = kind;
      node.identity = identity;
      if (kind == TreeNode::Kind::kFile) node.size = members_.at(identity).size;
      nodes.push_back(std::move(node));
    }
    return nodes;
  }

  std::string Head(const TreeNode& file) const override {
    return members_.at(file.identity).content->substr(0, kHeadBytes);
  }

  std::shared_ptr<const std::string> Content(const TreeNode& file) const override {
    const Member& member = members_.at(file.identity);
    return member.offset == kNoOffset ? member.content : nullptr;
  }

  uint64_t Offset(const TreeNode& file) const override { return members_.at(file.identity).offset; }

 private:
  StatusOr<Member> Take(const TarEntry& entry, TarReader* tar, uint64_t max_bytes, uint64_t* total) {
    Member member;
    member.size = entry.size;
    switch (entry.type) {
      case TarEntry::Type::kFolder:
        return member;
      case TarEntry::Type::kOther:
        member.kind = TreeNode::Kind::kOther;
        return member;
      case TarEntry::Type::kSymbolicLink:
        member.is_link = true;
        member.target = entry.target;
        return member;
      case TarEntry::Type::kHardLink: {
        const std::optional<std::string> target = Normalised(entry.target);
        const auto found = target ? members_.find(*target) : members_.end();
        if (found != members_.end() && found->second.kind != TreeNode::Kind::kFolder) return found->second;
        member.kind = target ? TreeNode::Kind::kLost : TreeNode::Kind::kOutside;
        member.target = entry.target;
        return member;
      }
      case TarEntry::Type::kFile: {
        member.kind = TreeNode::Kind::kFile;
        if (const auto offset = tar->ContentOffset()) member.offset = *offset;
        DISTILL_ASSIGN_OR_RETURN(std::string bytes, tar->Read(kHeadBytes));
        if (member.offset == kNoOffset && (IsJpeg(bytes) || IsPng(bytes) || IsWebp(bytes))) {
          *total += entry.size;
          if (*total > max_bytes || *total < entry.size) {
            return absl::ResourceExhaustedError(
                StrCat("the images in '", path_, "' take more than the limit of ", max_bytes,
                       " bytes that a compressed archive may hold; unpack it, or pack it without "
                       "compression: its pictures are then read where they lie"));
          }
          DISTILL_ASSIGN_OR_RETURN(const std::string rest, tar->Read(entry.size));
          bytes += rest;
        }
        member.content = std::make_shared<const std::string>(std::move(bytes));
        return member;
      }
    }
    return member;
  }

  void Put(const std::string& name, Member member, DataReport* report) {
    std::string folder;
    std::vector<std::string> parts = Split(name);
    const std::string last = std::move(parts.back());
    parts.pop_back();
    for (const std::string& part : parts) {  // folders need no member of their own
      const std::string inner = Inside(folder, part);
      if (members_[inner].kind != TreeNode::Kind::kFolder || members_[inner].is_link) {
        report->Refuse({"members that lie in what is no folder", "pack the archive anew"}, StrCat(path_, ":", name));
        return;
      }
      children_[folder].insert(part);
      folder = inner;
    }
    const auto found = members_.find(name);
    const bool is_folder = member.kind == TreeNode::Kind::kFolder && !member.is_link;
    if (found != members_.end()) {
      const bool was_folder = found->second.kind == TreeNode::Kind::kFolder && !found->second.is_link;
      if (was_folder && is_folder) return;
      if (was_folder != is_folder) {
        report->Refuse({"members that are both a file and a folder", "pack the archive anew"},
                       StrCat(path_, ":", name));
        return;
      }
      report->Warn({"members that occur more than once in their archive, of which the last is taken", ""},
                   StrCat(path_, ":", name));
    }
    children_[folder].insert(last);
    members_[name] = std::move(member);
  }

  // What `place`, a member's name, leads to. Links are relative to the folder that holds them.
  std::pair<TreeNode::Kind, std::string> Resolve(const std::string& place) const {
    std::vector<std::string> todo = Split(place);  // parts of the path still to go, the next one last
    std::reverse(todo.begin(), todo.end());
    std::vector<std::string> at;  // where we are: no links in it
    int links = 0;
    TreeNode::Kind kind = TreeNode::Kind::kFolder;
    while (!todo.empty()) {
      const std::string part = std::move(todo.back());
      todo.pop_back();
      if (part == ".") continue;
      if (part == "..") {
        if (at.empty()) return {TreeNode::Kind::kOutside, ""};
        at.pop_back();
        kind = TreeNode::Kind::kFolder;
        continue;
      }
      if (kind != TreeNode::Kind::kFolder) return {TreeNode::Kind::kLost, ""};
      const std::string here = absl::StrJoin(at, "/");
      const auto found = members_.find(Inside(here, part));
      if (found == members_.end()) return {TreeNode::Kind::kLost, ""};
      const Member& member = found->second;
      if (member.is_link) {
        if (++links > kMaxLinks) return {TreeNode::Kind::kLost, ""};
        if (member.target.starts_with('/')) return {TreeNode::Kind::kOutside, ""};
        const std::vector<std::string> parts = Split(member.target);
        todo.insert(todo.end(), parts.rbegin(), parts.rend());
        continue;
      }
      kind = member.kind;
      at.push_back(part);
    }
    return {kind, absl::StrJoin(at, "/")};
  }

  const std::string path_;
  std::map<std::string, Member> members_;                  // by normalised name; "" is the archive itself
  std::map<std::string, std::set<std::string>> children_;  // of folders
};

}  // namespace

StatusOr<std::unique_ptr<FileTree>> OpenArchiveTree(const std::string& path, uint64_t max_bytes, DataReport* report) {
  auto tree = std::make_unique<ArchiveTree>(path);
  DISTILL_RETURN_IF_ERROR(tree->Load(max_bytes, report));
  return tree;
}

}  // namespace distill
