// What a photograph costs on its way to the batch: random_resized_crop and horizontal_flip by our data path, from
// files, against bare libjpeg-turbo that decodes the same files whole, from memory, and does nothing with them; and
// against the same crops by Pillow and torchvision.
//
//   data_bench FOLDER [--rounds R] [--size PIXELS]       (through scripts/bench.sh data FOLDER)
//
// FOLDER: JPEG photographs, in it or in its folders. One thread; all figures are CPU time of that thread. The three
// alternate, each round with crops of its own. Checked first: our crops are those of the whole decoded pictures, bit
// for bit where nothing was reduced, else within kMostReduced grey levels in the mean; and those that Pillow cuts.
// Besides: the memory that reading takes when a tenth of the decoded pictures may stay there.
// The last lines are figures: RESULT <name> <value> <unit> baseline=<value> ratio=<x>.
#include <malloc.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <jpeglib.h>

#include "common/str_cat.h"
#include "student_worker/data/file_dataset.h"
#include "student_worker/data/image_decoder.h"
#include "student_worker/data/image_source.h"
#include "student_worker/data/sample_reader.h"

namespace distill {
namespace {

constexpr double kMostReduced = 4, kMostPillow = 1.5;  // mean grey levels of a picture, and of all pictures
constexpr uint64_t kSeed = 1;

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Of this process, in memory.
uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t pages = 0, resident = 0;
  file >> pages >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// The usual loop, into one buffer. libjpeg's own error handling ends the program.
size_t DecodeBare(const std::string& file, std::vector<uint8_t>* pixels) {
  jpeg_decompress_struct jpeg;
  jpeg_error_mgr errors;
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&jpeg);
  jpeg_mem_src(&jpeg, reinterpret_cast<const unsigned char*>(file.data()), file.size());
  jpeg_read_header(&jpeg, TRUE);
  jpeg.out_color_space = JCS_RGB;
  jpeg_start_decompress(&jpeg);
  const size_t row = size_t{jpeg.output_width} * 3, size = row * jpeg.output_height;
  if (pixels->size() < size) pixels->resize(size);
  while (jpeg.output_scanline < jpeg.output_height) {
    JSAMPROW to = pixels->data() + row * jpeg.output_scanline;
    jpeg_read_scanlines(&jpeg, &to, 1);
  }
  jpeg_finish_decompress(&jpeg);
  jpeg_destroy_decompress(&jpeg);
  return size;
}

struct Photographs {
  std::vector<std::string> files, contents;
  std::shared_ptr<const Dataset> dataset;
  std::shared_ptr<const Dataset> cached;  // the same, of which a tenth stays in memory decoded
  uint64_t cache_bytes = 0;               // that tenth
};

Photographs Open(const std::string& folder) {
  DataReport report;
  auto listing = ListImages(folder, folder, "", ImageLayout::kAnywhere, 0, &report);
  if (!listing.ok()) Die(std::string(listing.status().ToString()));
  if (!report.ok()) Die(std::string(report.status().ToString()));
  Photographs out;
  FileDataset::Options options{.source = folder, .channels = 3};
  for (ImageFile& file : listing->files) {
    const auto bytes = ReadImageBytes(file, 256 << 20);
    if (!bytes.ok()) Die(std::string(bytes.status().ToString()));
    Picture picture;
    DecodeNotes notes;
    const Status status = DecodeImage(**bytes, 3, &picture, &notes);
    if (!status.ok() || !notes.reducible) continue;  // damaged, PNG, or of four inks
    out.files.push_back(file.where);
    out.contents.push_back(**bytes);
    options.files.push_back(std::move(file));
    options.pixels += picture.plane();
  }
  if (out.files.empty()) Die(StrCat("no JPEG photograph in '", folder, "'"));
  options.sound.assign(out.files.size(), true);
  options.labels.assign(out.files.size(), kNoLabel);
  std::printf("%d photographs of %.2f megapixels in the mean\n", static_cast<int>(out.files.size()),
              1e-6 * static_cast<double>(options.pixels) / static_cast<double>(out.files.size()));
  auto cached = std::make_shared<FileDataset>(options);
  out.cache_bytes = cached->decoded_bytes() / 10;
  cached->Keep(CacheMode::kDecoded, std::make_shared<CacheBudget>(out.cache_bytes));
  out.cached = std::move(cached);
  out.dataset = std::make_shared<FileDataset>(std::move(options));
  return out;
}

double MeanDifference(const uint8_t* a, const uint8_t* b, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; ++i) sum += static_cast<uint64_t>(std::abs(int{a[i]} - int{b[i]}));
  return static_cast<double>(sum) / static_cast<double>(n);
}

class Bench {
 public:
  Bench(const Photographs& photographs, uint32_t size) : photographs_(photographs), size_(size) {
    const double side = size;
    auto transforms = Transforms::Create({{"random_resized_crop", {{"size", {side}}}}, {"horizontal_flip", {}}}, kSeed);
    if (!transforms.ok()) Die(std::string(transforms.status().ToString()));
    transforms_ = *std::move(transforms);
    SampleReader::Options options;
    options.dataset = photographs.dataset;
    options.transforms = transforms_;
    reader_ = Reader(options);
    options.dataset = photographs.cached;
    cached_reader_ = Reader(options);
    folder_ = std::filesystem::temp_directory_path() / StrCat("distill_data_bench_", getpid());
    std::filesystem::create_directories(folder_);
  }
  ~Bench() { std::filesystem::remove_all(folder_); }

  size_t count() const { return photographs_.files.size(); }

  // Our crops of epoch 0.
  std::vector<uint8_t> Check() {
    std::vector<uint8_t> ours;
    int reduced = 0;
    double worst = 0;
    for (uint32_t id = 0; id < count(); ++id) {
      const auto samples = reader_->Read({&id, 1}, 0);
      if (!samples.ok()) Die(std::string(samples.status().ToString()));
      Picture whole, scratch;
      if (!photographs_.dataset->Read(id, &whole).ok()) Die("a photograph that was decoded is not decoded again");
      const bool is_reduced = ReductionOf(transforms_.PartOf(0, id, whole.height, whole.width)) > 1;
      transforms_.Apply(0, id, &whole, &scratch);
      const double difference = MeanDifference(samples->pixels.data(), whole.pixels.data(), whole.pixels.size());
      reduced += is_reduced ? 1 : 0;
      worst = std::max(worst, difference);
      if (difference > (is_reduced ? kMostReduced : 0)) {
        Die(StrCat("'", photographs_.files[id], "': our crop differs from that of the whole picture by ", difference,
                   " grey levels in the mean"));
      }
      ours.insert(ours.end(), samples->pixels.begin(), samples->pixels.end());
    }
    std::printf(
        "checked: crops equal those of the whole pictures; %d of %d were decoded at a reduced size, and differ by "
        "at most %.2f grey levels in the mean\n",
        reduced, static_cast<int>(count()), worst);
    return ours;
  }

  double Bare() {
    const double begin = CpuSeconds();
    size_t sum = 0;
    for (const std::string& content : photographs_.contents) sum += DecodeBare(content, &pixels_);
    if (sum == 0) Die("nothing was decoded");
    return CpuSeconds() - begin;
  }

  double Ours(uint64_t epoch) {
    const double begin = CpuSeconds();
    for (uint32_t id = 0; id < count(); ++id) {
      if (!reader_->Read({&id, 1}, epoch).ok()) Die("a photograph could not be read");
    }
    return CpuSeconds() - begin;
  }

  // What three epochs add to the memory of this process when a tenth of the decoded pictures may stay there.
  void Memory(std::vector<std::string>* results) {
    malloc_trim(0);  // what the checks have freed, or reading would seem to take nothing
    const double before = static_cast<double>(ResidentBytes()), mib = 1 << 20;
    double most = 0;
    for (uint64_t epoch = 0; epoch < 3; ++epoch) {
      for (uint32_t id = 0; id < count(); ++id) {
        if (!cached_reader_->Read({&id, 1}, epoch).ok()) Die("a photograph could not be read");
        most = std::max(most, static_cast<double>(ResidentBytes()) - before);
      }
      std::printf("memory after epoch %d with a tenth of the pictures kept decoded: %+.1f MiB\n",
                  static_cast<int>(epoch + 1), (static_cast<double>(ResidentBytes()) - before) / mib);
    }
    const double limit = static_cast<double>(photographs_.cache_bytes);
    char line[200];
    std::snprintf(line, sizeof line, "RESULT data_memory_peak %.1f MiB baseline=%.1f ratio=%.3g", most / mib,
                  limit / mib, most / limit);
    results->push_back(line);
  }

  // The crops of `epoch` by pillow_crops.py; 0: it cannot run here. `ours`: compared with its results.
  double Pillow(uint64_t epoch, const std::vector<uint8_t>* ours, std::string* what) {
    const std::string list = folder_ / "crops.tsv", out = folder_ / "crops";
    std::ofstream lines(list);
    for (uint32_t id = 0; id < count(); ++id) {
      const auto info = ReadImageInfo(photographs_.contents[id]);
      const CropRect crop = transforms_.PartOf(epoch, id, info->height, info->width).crop;
      // As the second transform of the list draws (transforms.h).
      CounterRng rng(CounterRng::Mix(kSeed + 2 * CounterRng::kGamma), RngPurpose::kTransform, epoch, id);
      lines << photographs_.files[id] << '\t' << crop.top << '\t' << crop.left << '\t' << crop.height << '\t'
            << crop.width << '\t' << (rng.Uniform() < 0.5 ? 1 : 0) << '\n';
    }
    lines.close();
    FILE* const python = popen(StrCat("'", DISTILL_BENCH_PYTHON, "' '", DISTILL_PILLOW_CROPS, "' '", list, "' ", size_,
                                      ours == nullptr ? "" : StrCat(" '", out, "'"))
                                   .c_str(),
                               "r");
    double seconds = 0;
    char text[200] = "";
    if (python == nullptr || std::fscanf(python, "%lf %199[^\n]", &seconds, text) != 2) seconds = 0;
    if (python == nullptr || pclose(python) != 0) return 0;
    *what = text;
    if (ours != nullptr) {
      std::ifstream in(out, std::ios::binary);
      const std::string theirs((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
      if (theirs.size() != ours->size()) Die("Pillow's crops have another size than ours");
      const double difference =
          MeanDifference(ours->data(), reinterpret_cast<const uint8_t*>(theirs.data()), theirs.size());
      std::printf("checked: our crops differ from those of %s by %.3f grey levels in the mean\n", text, difference);
      if (difference > kMostPillow) Die("that is too much");
    }
    return seconds;
  }

 private:
  const Photographs& photographs_;
  const uint32_t size_;
  Transforms transforms_;
  static std::shared_ptr<const SampleReader> Reader(SampleReader::Options options) {
    auto reader = SampleReader::Create(std::move(options));
    if (!reader.ok()) Die(std::string(reader.status().ToString()));
    return *std::move(reader);
  }

  std::shared_ptr<const SampleReader> reader_, cached_reader_;
  std::filesystem::path folder_;
  std::vector<uint8_t> pixels_;
};

int Main(int argc, char** argv) {
  std::string folder;
  int rounds = 7, size = 224;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--rounds" && i + 1 < argc) {
      rounds = std::atoi(argv[++i]);
    } else if (argument == "--size" && i + 1 < argc) {
      size = std::atoi(argv[++i]);
    } else if (folder.empty() && !argument.starts_with("-")) {
      folder = argument;
    } else {
      Die("usage: data_bench FOLDER [--rounds R] [--size PIXELS]");
    }
  }
  if (folder.empty() || rounds < 1 || size < 1) Die("usage: data_bench FOLDER [--rounds R] [--size PIXELS]");
  folder = std::filesystem::canonical(folder);
  const Photographs photographs = Open(folder);
  Bench bench(photographs, static_cast<uint32_t>(size));
  const std::vector<uint8_t> ours = bench.Check();
  std::vector<std::string> results;
  bench.Memory(&results);
  std::string what;
  const bool has_pillow = bench.Pillow(0, &ours, &what) > 0;
  if (!has_pillow) std::printf("Pillow is not importable by %s: no comparison with it\n", DISTILL_BENCH_PYTHON);
  std::vector<double> bare, own, pillow, bare_ratio, pillow_ratio;
  for (int round = 1; round <= rounds; ++round) {
    bare.push_back(bench.Bare());
    own.push_back(bench.Ours(round));
    bare_ratio.push_back(bare.back() / own.back());
    if (!has_pillow) continue;
    pillow.push_back(bench.Pillow(round, nullptr, &what));
    pillow_ratio.push_back(pillow.back() / own.back());
  }
  const auto rate = [&](const std::vector<double>& seconds) {
    return static_cast<double>(bench.count()) / Median(seconds);
  };
  const auto tell = [&](const char* name, const std::vector<double>& baseline, const std::vector<double>& ratio) {
    std::printf("RESULT data_crops_%s %.0f images/s baseline=%.0f ratio=%.3g\n", name, rate(own), rate(baseline),
                Median(ratio));
  };
  const auto range = [](const char* name, const std::vector<double>& ratio) {
    std::printf("ratios to %s: %.2f to %.2f\n", name, *std::min_element(ratio.begin(), ratio.end()),
                *std::max_element(ratio.begin(), ratio.end()));
  };
  range("bare decoding", bare_ratio);
  if (has_pillow) range(what.c_str(), pillow_ratio);
  std::printf("on paper, 16 cores: %.0f images/s\n", 16 * rate(own));
  tell("to_bare_decoding", bare, bare_ratio);
  if (has_pillow) tell("to_pillow", pillow, pillow_ratio);
  for (const std::string& line : results) std::printf("%s\n", line.c_str());
  return 0;
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) { return distill::Main(argc, argv); }
