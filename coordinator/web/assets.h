// The files of the status page, embedded in the program. Immutable; any thread.
#ifndef DISTILL_COORDINATOR_WEB_ASSETS_H_
#define DISTILL_COORDINATOR_WEB_ASSETS_H_

#include <string>
#include <string_view>

namespace distill::web {

// Written by embed_assets.cmake.
struct EmbeddedFile {
  std::string_view name;
  std::string_view content;
};
extern const EmbeddedFile* const kEmbeddedFiles;
extern const unsigned kEmbeddedFileCount;

struct Asset {
  std::string_view content;
  std::string_view content_type;
  std::string etag;  // quoted, of the content
};
// The file of this exact name ("app.js"); null when there is none.
const Asset* FindAsset(std::string_view name);

// A quoted entity tag of the content.
std::string EntityTag(std::string_view content);

}  // namespace distill::web

#endif  // DISTILL_COORDINATOR_WEB_ASSETS_H_
