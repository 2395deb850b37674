#include "common/kernels/tat_patches.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/kernels/float_array.h"

namespace distill::tat {
namespace {

// Channels (or, to average, rows of windows) whose pixels are fetched ahead: they are too far apart for the processor
// to guess. (Past the last, this touches nothing.)
constexpr int64_t kAhead = 2;
constexpr int64_t kLine = 64;  // bytes of a cache line

// Strides of a map, in elements.
struct Strides {
  explicit Strides(const FeatureMap& map) {
    const bool first = map.layout == MapLayout::kChannelsFirst;
    channel = first ? map.height * map.width : 1;
    column = first ? 1 : map.channels;
    row = column * map.width;
    image = map.channels * map.height * map.width;
  }
  int64_t image, channel, row, column;
};

// Where the tokens [begin, begin + count) of some patches are.
struct PatchPixels : Strides {
  // Rows of tokens in a patch: the first pixel and how far it is from the patch's. Tokens that begin or end inside a
  // row make up to three of them, all tokens of a patch one.
  struct Block {
    int64_t y, x, rows, width, offset;
  };
  // Patches side by side, of which all tokens are meant. Their rows, one after the other, are contiguous pixels if
  // channels come first: all of a strip is read or written before the next channel, whose pixels lie a power of two
  // away and would drive a line out of the cache before its rest is needed.
  struct Strip {
    int64_t first, patches;  // of those asked for
    int64_t y, x, offset;    // its first pixel
  };

  PatchPixels(const Patches& patches, int64_t begin, int64_t count) : Strides(*patches.side->map) {
    const TatTokens& tokens = *patches.side->tokens;
    const bool whole = count == tokens.count();  // else patches side by side leave gaps
    for (int64_t u = 0; u < patches.count; ++u) {
      const int64_t patch = patches.first + u;
      const int64_t y = patch / tokens.patch_columns * tokens.height, x = patch % tokens.patch_columns * tokens.width;
      if (whole && u > 0 && x > 0) {
        ++strips.back().patches;
      } else {
        strips.push_back({u, 1, y, x, patches.image * image + y * row + x * column});
      }
    }
    for (int64_t at = begin, end = begin + count; at < end;) {
      const int64_t y = at / tokens.width, x = at % tokens.width;
      const int64_t width = std::min(tokens.width - x, end - at);
      const int64_t rows = width == tokens.width ? (end - at) / width : 1;
      blocks.push_back({y, x, rows, width, y * row + x * column});
      at += rows * width;
    }
    patch_step = tokens.width * column;
    longest_strip = 0;
    for (const Strip& strip : strips) longest_strip = std::max(longest_strip, strip.patches);
  }

  std::vector<Block> blocks;
  std::vector<Strip> strips;
  int64_t patch_step;  // from a patch to the next of its strip
  int64_t longest_strip;
};

template <int kWidth, typename T>
inline void CopyRowsOf(const T* __restrict from, int64_t from_step, int64_t rows, int64_t width, float* __restrict to,
                       int64_t to_step) {
  for (int64_t y = 0; y < rows; ++y, from += from_step, to += to_step) {
    for (int64_t i = 0; i < (kWidth > 0 ? kWidth : width); ++i) to[i] = ToFloat(from[i]);
  }
}

// Copies rows of `width` values. Patches have rows of 4 or 8 tokens, too short for a vectorised loop's preparations.
template <typename T>
void CopyRows(const T* from, int64_t from_step, int64_t rows, int64_t width, float* to, int64_t to_step) {
  switch (width) {
    case 4:
      return CopyRowsOf<4>(from, from_step, rows, width, to, to_step);
    case 8:
      return CopyRowsOf<8>(from, from_step, rows, width, to, to_step);
    case 16:
      return CopyRowsOf<16>(from, from_step, rows, width, to, to_step);
    default:
      return CopyRowsOf<0>(from, from_step, rows, width, to, to_step);
  }
}

template <typename T>
void PackTyped(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, float* out,
               float* staging) {
  const FeatureMap& map = *patches.side->map;
  const PatchPixels pixels(patches, begin, count);
  const T* const data = static_cast<const T*>(map.data);
  const int64_t channels = map.channels;
  if (map.layout == MapLayout::kChannelsFirst) {
    for (int64_t c = 0; c < channels; ++c) {
      for (const PatchPixels::Strip& strip : pixels.strips) {
        const T* from = data + strip.offset + c * pixels.channel;
        for (int64_t u = 0; u < strip.patches; ++u, from += pixels.patch_step) {
          float* to = out + patches.Row(strip.first + u, c) * t;
          for (const PatchPixels::Block& block : pixels.blocks) {
            // The lines that begin in this patch, if the strip begins with one.
            const int64_t bytes = block.width * static_cast<int64_t>(sizeof(T)), until = RoundUp(u * bytes, kLine);
            for (int64_t i = until - u * bytes; i < bytes; i += kLine) {
              const T* next = from + kAhead * pixels.channel + block.offset + i / static_cast<int64_t>(sizeof(T));
              for (int64_t y = 0; y < block.rows; ++y, next += pixels.row) __builtin_prefetch(next);
            }
            CopyRows(from + block.offset, pixels.row, block.rows, block.width, to, block.width);
            to += block.rows * block.width;
          }
          std::fill(to, to + (t - count), 0.0f);
        }
      }
    }
    return;
  }
  // Pixel by pixel into [token][channel] floats, then transposed.
  const int64_t step = patches.per_group * t;
  for (const PatchPixels::Strip& strip : pixels.strips) {
    for (int64_t u = 0; u < strip.patches; ++u) {
      float* const patch = out + patches.Row(strip.first + u, 0) * t;
      float* to = patch;
      for (const PatchPixels::Block& block : pixels.blocks) {
        const T* row = data + strip.offset + u * pixels.patch_step + block.offset;
        for (int64_t y = 0; y < block.rows; ++y, row += pixels.row, to += block.width) {
          for (int64_t i = 0; i < block.width * channels; ++i) staging[i] = ToFloat(row[i]);
          kernels.transpose(staging, block.width, channels, channels, to, step);
        }
      }
      if (count == t) continue;
      for (int64_t c = 0; c < channels; ++c) std::fill(patch + c * step + count, patch + c * step + t, 0.0f);
    }
  }
}

// line = every value `window` times.
template <int kWindow>
void Repeat(const float* values, int64_t count, int64_t window, float* line) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < (kWindow > 0 ? kWindow : window); ++j) *line++ = values[i];
  }
}

// line[i] = the gradient of the window of pixel x + i of row y, not yet divided among its pixels; 0 outside the
// windows. Channels first.
void AnchorLine(const AnchorGradient& anchor, int64_t channel, int64_t y, int64_t x, int64_t count, float* line) {
  const int64_t row = y / anchor.window.height, window = anchor.window.width;
  const int64_t inside = row < anchor.height ? std::clamp<int64_t>(anchor.width * window - x, 0, count) : 0;
  const float* cell = anchor.values + (channel * anchor.height + row) * anchor.width + x / window;
  __builtin_prefetch(cell + kAhead * anchor.height * anchor.width);
  int64_t i = 0;
  for (; i < inside && (x + i) % window != 0; ++i) line[i] = *cell;  // of a window that begins before x
  if (i > 0 && (x + i) % window == 0) ++cell;
  const int64_t whole = (inside - i) / window;
  const auto repeat = window == 4 ? Repeat<4> : window == 2 ? Repeat<2> : Repeat<0>;
  repeat(cell, whole, window, line + i);
  i += whole * window;
  std::fill(line + i, line + inside, i < inside ? cell[whole] : 0.0f);
  std::fill(line + inside, line + count, 0.0f);
}

// The window's gradient, [channel], of a pixel whose channels are last; null outside the windows.
const float* AnchorPixel(const AnchorGradient& anchor, int64_t channels, int64_t y, int64_t x) {
  const int64_t row = y / anchor.window.height, column = x / anchor.window.width;
  if (anchor.values == nullptr || row >= anchor.height || column >= anchor.width) return nullptr;
  return anchor.values + (row * anchor.width + column) * channels;
}

// Window sums of one row of windows, channels first. kWindow: the windows' width, or 0 if it is not constant.
template <int kWindow>
void SumWindows(const float* line, int64_t width, int64_t windows, float share, float* out) {
  for (int64_t i = 0; i < windows; ++i) {
    float sum = 0;
    for (int64_t dx = 0; dx < (kWindow > 0 ? kWindow : width); ++dx)
      sum += line[i * (kWindow > 0 ? kWindow : width) + dx];
    out[i] = share * sum;
  }
}

template <typename T>
void PoolTyped(const FeatureMap& map, const TatTokens& tokens, int64_t image, int64_t begin, int64_t end, float* out) {
  const Strides strides(map);
  const TatWindow window = tokens.window;
  const float share = 1.0f / static_cast<float>(window.count());
  const T* const data = static_cast<const T*>(map.data) + image * strides.image;
  if (map.layout == MapLayout::kChannelsFirst) {
    const int64_t width = tokens.width * window.width;
    const FloatArray line = NewFloats(width);
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t y = 0; y < tokens.height; ++y) {
        // Columns first, which are contiguous, then along the line.
        const T* from = data + c * strides.channel + y * window.height * strides.row;
        // The processor fetches ahead by itself, but not beyond a page.
        for (int64_t i = 0; i < window.height * map.width; i += kLine / static_cast<int64_t>(sizeof(T))) {
          __builtin_prefetch(from + kAhead * window.height * strides.row + i);
        }
        for (int64_t i = 0; i < width; ++i) line[i] = ToFloat(from[i]);
        for (int64_t dy = 1; dy < window.height; ++dy) {
          from += strides.row;
          for (int64_t i = 0; i < width; ++i) line[i] += ToFloat(from[i]);
        }
        float* const to = out + (c * tokens.height + y) * tokens.width;
        const auto sum = window.width == 4 ? SumWindows<4> : window.width == 2 ? SumWindows<2> : SumWindows<0>;
        sum(line.get(), window.width, tokens.width, share, to);
      }
    }
    return;
  }
  for (int64_t y = begin; y < end; ++y) {
    for (int64_t x = 0; x < tokens.width; ++x) {
      float* const to = out + (y * tokens.width + x) * map.channels;
      std::fill(to, to + map.channels, 0.0f);
      for (int64_t dy = 0; dy < window.height; ++dy) {
        for (int64_t dx = 0; dx < window.width; ++dx) {
          const T* const pixel =
              data + (y * window.height + dy) * strides.row + (x * window.width + dx) * strides.column;
          for (int64_t c = 0; c < map.channels; ++c) to[c] += share * ToFloat(pixel[c]);
        }
      }
    }
  }
}

}  // namespace

void Pack(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, float* out,
          float* staging) {
  DispatchElement(patches.side->map->type, [&](auto* tag) {
    PackTyped<std::remove_pointer_t<decltype(tag)>>(kernels, patches, begin, count, t, out, staging);
  });
}

void Unpack(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, const float* from,
            float factor, WriteMode mode, float* staging) {
  const Side& side = *patches.side;
  const AnchorGradient& anchor = side.anchor;
  const PatchPixels pixels(patches, begin, count);
  const int64_t channels = side.map->channels;
  if (side.map->layout == MapLayout::kChannelsFirst) {
    // A strip of a channel is put together, [row][pixel], then written row by row.
    const FloatArray together = NewFloats(pixels.longest_strip * count);
    const FloatArray line = NewFloats(pixels.longest_strip * side.tokens->width);
    for (int64_t c = 0; c < channels; ++c) {
      for (const PatchPixels::Strip& strip : pixels.strips) {
        float* const target = side.gradient + strip.offset + c * pixels.channel;
        const float* value = from + patches.Row(strip.first, c) * t;
        if (strip.patches > 1) {
          const PatchPixels::Block& block = pixels.blocks[0];
          for (int64_t u = 0; u < strip.patches; ++u) {
            CopyRows(from + patches.Row(strip.first + u, c) * t, block.width, block.rows, block.width,
                     together.get() + u * block.width, strip.patches * block.width);
          }
          value = together.get();
        }
        for (const PatchPixels::Block& block : pixels.blocks) {
          const int64_t width = strip.patches * block.width;
          for (int64_t i = 0; i < block.rows; ++i, value += width) {
            const int64_t y = strip.y + block.y + i;
            if (anchor.values != nullptr && (i == 0 || y % anchor.window.height == 0)) {
              AnchorLine(anchor, c, y, strip.x + block.x, width, line.get());
            }
            kernels.write(value, factor, anchor.values != nullptr ? line.get() : nullptr, anchor.share(), width, mode,
                          target + block.offset + i * pixels.row);
          }
        }
      }
    }
    if (mode == WriteMode::kStream) kernels.stream_fence();
    return;
  }
  for (const PatchPixels::Strip& strip : pixels.strips) {
    for (int64_t u = 0; u < strip.patches; ++u) {
      const float* value = from + patches.Row(strip.first + u, 0) * t;
      for (const PatchPixels::Block& block : pixels.blocks) {
        float* target = side.gradient + strip.offset + u * pixels.patch_step + block.offset;
        for (int64_t y = 0; y < block.rows; ++y, target += pixels.row, value += block.width) {
          kernels.transpose(value, channels, block.width, patches.per_group * t, staging, channels);
          for (int64_t i = 0; i < block.width; ++i) {
            const float* const window =
                AnchorPixel(anchor, channels, strip.y + block.y + y, strip.x + u * side.tokens->width + block.x + i);
            kernels.write(staging + i * channels, factor, window, anchor.share(), channels, mode,
                          target + i * pixels.column);
          }
        }
      }
    }
  }
  if (mode == WriteMode::kStream) kernels.stream_fence();
}

int64_t Planes(const FeatureMap& map) { return map.layout == MapLayout::kChannelsFirst ? map.channels : map.height; }

void WriteRest(const Kernels& kernels, const Side& side, int64_t image, int64_t rows, int64_t columns, WriteMode mode,
               int64_t begin, int64_t end) {
  const FeatureMap& map = *side.map;
  const Strides strides(map);
  const AnchorGradient& anchor = side.anchor;
  float* const gradient = side.gradient + image * strides.image;
  const bool first = map.layout == MapLayout::kChannelsFirst;
  const FloatArray line = NewFloats(map.width);
  const FloatArray zeros = NewFloats(std::max(map.width, map.channels));
  std::fill(zeros.get(), zeros.get() + std::max(map.width, map.channels), 0.0f);
  for (int64_t plane = begin; plane < end; ++plane) {
    for (int64_t y = first ? 0 : plane; y < (first ? map.height : plane + 1); ++y) {
      const int64_t x = y < rows ? columns : 0;
      if (first) {
        if (anchor.values != nullptr) AnchorLine(anchor, plane, y, x, map.width - x, line.get());
        kernels.write(zeros.get(), 0, anchor.values != nullptr ? line.get() : nullptr, anchor.share(), map.width - x,
                      mode, gradient + plane * strides.channel + y * strides.row + x);
        continue;
      }
      for (int64_t i = x; i < map.width; ++i) {
        kernels.write(zeros.get(), 0, AnchorPixel(anchor, map.channels, y, i), anchor.share(), map.channels, mode,
                      gradient + y * strides.row + i * strides.column);
      }
    }
  }
  if (mode == WriteMode::kStream) kernels.stream_fence();
}

void Pool(const FeatureMap& map, const TatTokens& tokens, int64_t image, int64_t begin, int64_t end, float* out) {
  DispatchElement(map.type, [&](auto* tag) {
    PoolTyped<std::remove_pointer_t<decltype(tag)>>(map, tokens, image, begin, end, out);
  });
}

bool AllFinite(const FeatureMap& map, int64_t images) {
  return DispatchElement(map.type, [&](auto* tag) {
    const auto* const values = static_cast<const std::remove_pointer_t<decltype(tag)>*>(map.data);
    return std::all_of(values, values + images * map.channels * map.height * map.width,
                       [](auto x) { return std::isfinite(ToFloat(x)); });
  });
}

}  // namespace distill::tat
