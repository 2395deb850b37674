#include "common/kernels/tat_patches.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace distill::tat {
namespace {

// Channels whose pixels are fetched ahead: they are too far apart for the processor to guess. (Past the last, this
// touches nothing.)
constexpr int64_t kAhead = 8;

// f(i) for i in [0, count), four at a time: patches have rows of 4 or 8 tokens, too short for a vectorised loop's
// preparations.
template <typename F>
inline void ByFours(int64_t count, F f) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < 8; ++j) f(i + j);
  }
  for (; i + 4 <= count; i += 4) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) f(i + j);
  }
  for (; i < count; ++i) f(i);
}

// Where their pixels are, in elements of the map, and which runs of tokens [begin, begin + count) lie in one row of a
// patch.
struct PatchPixels {
  struct Run {
    int64_t offset, tokens;  // of its first pixel in the patch
  };

  PatchPixels(const Patches& patches, int64_t begin, int64_t count) {
    const FeatureMap& map = *patches.side->map;
    const TatTokens& tokens = *patches.side->tokens;
    const bool first = map.layout == MapLayout::kChannelsFirst;
    channel = first ? map.height * map.width : 1;
    column = first ? 1 : map.channels;
    row = column * map.width;
    for (int64_t patch = patches.first; patch < patches.first + patches.count; ++patch) {
      const int64_t top = patch / tokens.patch_columns * tokens.height * tokens.window.height;
      const int64_t left = patch % tokens.patch_columns * tokens.width * tokens.window.width;
      origins.push_back(patches.image * map.channels * map.height * map.width + top * row + left * column);
    }
    int64_t y = begin / tokens.width, x = begin % tokens.width;
    for (; count > 0; x = 0, ++y) {
      runs.push_back(
          {y * tokens.window.height * row + x * tokens.window.width * column, std::min(tokens.width - x, count)});
      count -= runs.back().tokens;
    }
  }

  int64_t row, column, channel;  // strides
  std::vector<int64_t> origins;
  std::vector<Run> runs;
};

// Channels first, a channel's patches are read together: the same place in neighbouring channels is a power of two
// away, so that a cache line would be lost before the next patch needs the rest of it.
template <typename T>
bool PackTyped(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, float* out,
               float* staging) {
  const FeatureMap& map = *patches.side->map;
  const PatchPixels pixels(patches, begin, count);
  const TatWindow window = patches.side->tokens->window;
  const int64_t channels = map.channels;
  const float share = 1.0f / static_cast<float>(window.count());
  std::vector<float> line_storage(window.count() == 1 ? 0 : map.width);
  float* const line = line_storage.data();
  float check[16] = {};  // 0 times anything finite stays 0
  const auto finish = [&](float* row) {
    std::fill(row + count, row + t, 0.0f);
    for (int64_t k = 0; k < t; k += 16) {
      for (int64_t j = 0; j < 16; ++j) check[j] += 0 * row[k + j];
    }
  };
  if (map.layout == MapLayout::kChannelsFirst) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t u = 0; u < patches.count; ++u) {
        const T* data = static_cast<const T*>(map.data) + pixels.origins[u] + c * pixels.channel;
        float* const row = out + (u * channels + c) * t;
        float* to = row;
        for (const PatchPixels::Run& run : pixels.runs) {
          const T* from = data + run.offset;
          __builtin_prefetch(from + kAhead * pixels.channel);
          if (window.count() == 1) {
            ByFours(run.tokens, [&](int64_t i) { to[i] = ToFloat(from[i]); });
          } else {
            // Lines first, which are contiguous, then the pixels of a line.
            const int64_t width = run.tokens * window.width;
            for (int64_t i = 0; i < width; ++i) line[i] = ToFloat(from[i]);
            for (int64_t dy = 1; dy < window.height; ++dy) {
              from += pixels.row;
              for (int64_t i = 0; i < width; ++i) line[i] += ToFloat(from[i]);
            }
            for (int64_t i = 0; i < run.tokens; ++i) {
              float sum = 0;
              for (int64_t dx = 0; dx < window.width; ++dx) sum += line[i * window.width + dx];
              to[i] = share * sum;
            }
          }
          to += run.tokens;
        }
        finish(row);
      }
    }
  } else {
    // Pixel by pixel into [token][channel] floats, then transposed.
    for (int64_t u = 0; u < patches.count; ++u) {
      const T* data = static_cast<const T*>(map.data) + pixels.origins[u];
      float* to = out + u * channels * t;
      for (const PatchPixels::Run& run : pixels.runs) {
        const T* from = data + run.offset;
        for (int64_t i = 0; i < run.tokens; ++i) {
          float* pixel = staging + i * channels;
          for (int64_t dy = 0; dy < window.height; ++dy) {
            for (int64_t dx = 0; dx < window.width; ++dx) {
              const T* source = from + dy * pixels.row + (i * window.width + dx) * pixels.column;
              if (dy + dx == 0) {
                for (int64_t c = 0; c < channels; ++c) pixel[c] = share * ToFloat(source[c]);
              } else {
                for (int64_t c = 0; c < channels; ++c) pixel[c] += share * ToFloat(source[c]);
              }
            }
          }
        }
        kernels.transpose(staging, run.tokens, channels, channels, to, t);
        to += run.tokens;
      }
      for (int64_t c = 0; c < channels; ++c) finish(out + (u * channels + c) * t);
    }
  }
  return std::all_of(check, check + 16, [](float x) { return x == 0; });
}

template <bool kAdd>
void UnpackTo(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t,
              const float* from, float factor, float* staging) {
  const FeatureMap& map = *patches.side->map;
  const PatchPixels pixels(patches, begin, count);
  const TatWindow window = patches.side->tokens->window;
  const int64_t channels = map.channels;
  const float share = factor / static_cast<float>(window.count());
  if (map.layout == MapLayout::kChannelsFirst) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t u = 0; u < patches.count; ++u) {
        float* data = patches.side->gradient + pixels.origins[u] + c * pixels.channel;
        const float* value = from + (u * channels + c) * t;
        for (const PatchPixels::Run& run : pixels.runs) {
          float* to = data + run.offset;
          __builtin_prefetch(to + kAhead * pixels.channel, 1);
          if (window.count() == 1) {
            ByFours(run.tokens, [&](int64_t i) { to[i] = (kAdd ? to[i] : 0.0f) + share * value[i]; });
          } else {
            for (int64_t dy = 0; dy < window.height; ++dy, to += pixels.row) {
              for (int64_t i = 0; i < run.tokens; ++i) {
                for (int64_t dx = 0; dx < window.width; ++dx)
                  to[i * window.width + dx] = (kAdd ? to[i * window.width + dx] : 0.0f) + share * value[i];
              }
            }
          }
          value += run.tokens;
        }
      }
    }
    return;
  }
  for (int64_t u = 0; u < patches.count; ++u) {
    float* data = patches.side->gradient + pixels.origins[u];
    const float* value = from + u * channels * t;
    for (const PatchPixels::Run& run : pixels.runs) {
      kernels.transpose(value, channels, run.tokens, t, staging, channels);
      value += run.tokens;
      for (int64_t i = 0; i < run.tokens; ++i) {
        const float* pixel = staging + i * channels;
        for (int64_t dy = 0; dy < window.height; ++dy) {
          for (int64_t dx = 0; dx < window.width; ++dx) {
            float* target = data + run.offset + dy * pixels.row + (i * window.width + dx) * pixels.column;
            for (int64_t c = 0; c < channels; ++c) target[c] = (kAdd ? target[c] : 0.0f) + share * pixel[c];
          }
        }
      }
    }
  }
}

}  // namespace

bool Pack(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, float* out,
          float* staging) {
  return DispatchElement(patches.side->map->type, [&](auto* tag) {
    return PackTyped<std::remove_pointer_t<decltype(tag)>>(kernels, patches, begin, count, t, out, staging);
  });
}

void Unpack(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, const float* from,
            float factor, bool add, float* staging) {
  if (add) {
    UnpackTo<true>(kernels, patches, begin, count, t, from, factor, staging);
  } else {
    UnpackTo<false>(kernels, patches, begin, count, t, from, factor, staging);
  }
}

}  // namespace distill::tat
