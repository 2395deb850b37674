#include "coordinator/web/assets.h"

#include <map>

#include "common/hash/sha256.h"
#include "common/str_cat.h"

namespace distill::web {
namespace {

std::string_view TypeOf(std::string_view name) {
  if (name.ends_with(".html")) return "text/html; charset=utf-8";
  if (name.ends_with(".css")) return "text/css; charset=utf-8";
  if (name.ends_with(".js")) return "text/javascript; charset=utf-8";
  if (name.ends_with(".svg")) return "image/svg+xml";
  return "application/octet-stream";
}

std::map<std::string_view, Asset> ReadAssets() {
  std::map<std::string_view, Asset> assets;
  for (unsigned i = 0; i < kEmbeddedFileCount; ++i) {
    const EmbeddedFile& file = kEmbeddedFiles[i];
    assets[file.name] = {file.content, TypeOf(file.name), EntityTag(file.content)};
  }
  return assets;
}

}  // namespace

std::string EntityTag(std::string_view content) { return StrCat("\"", Sha256Hex(content).substr(0, 24), "\""); }

const Asset* FindAsset(std::string_view name) {
  static const std::map<std::string_view, Asset> assets = ReadAssets();
  const auto found = assets.find(name);
  return found == assets.end() ? nullptr : &found->second;
}

}  // namespace distill::web
