// The command line as data: what main() parses into and the commands read. Defaults are those shown by --help.
#ifndef DISTILL_COORDINATOR_CLI_OPTIONS_H_
#define DISTILL_COORDINATOR_CLI_OPTIONS_H_

#include <CLI/App.hpp>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "common/rpc/rpc_options.h"

namespace distill::cli {

inline constexpr char kDefaultCoordinator[] = "127.0.0.1:7070";

struct Options {
  // Global.
  std::string coordinator = kDefaultCoordinator;  // host:port
  RpcSecurity security;
  std::string timeout_text = "20s";
  std::chrono::milliseconds timeout{
      20000};                    // of one call, of the retries of submit, and of reconnecting while following
  std::string output = "table";  // table or json
  std::string color = "auto";    // auto, always or never
  bool quiet = false;
  bool verbose = false;

  // Of the commands; each reads only what it declares.
  std::string job;                                // id or name
  std::vector<std::string> jobs;                  // results
  std::string worker;                             // uncordon
  std::string file;                               // submit; "-" is standard input
  bool watch = false;                             // submit, resume
  bool dry_run = false;                           // submit
  std::vector<std::string> overrides;             // submit --set
  std::string request_id;                         // submit; empty: a random one
  std::string name;                               // submit
  uint32_t limit = 0;                             // list, history; 0: the coordinator's default, all points
  std::vector<std::string> states;                // list; empty: all
  bool follow = false;                            // logs
  uint64_t after = 0;                             // logs
  std::string reason;                             // cancel
  bool wait = false;                              // cancel
  std::string model;                              // taps
  uint32_t width = 0, classes = 0, channels = 0;  // taps; 0: defaults
  std::string image;                              // taps, "HxW"; empty: default
  bool csv = false;                               // history
  std::string out;                                // report; "-" is standard output, "" a name made from the id
  bool force = false;                             // report
  std::string shell;                              // completion

  bool json() const { return output == "json"; }
};

// Declares all commands and flags on `app`. `options` outlives the parse.
void DeclareCommandLine(CLI::App* app, Options* options);

// "HxW" with both at least 1 and at most 65535; false for anything else.
bool ParseImageSize(const std::string& text, uint32_t* height, uint32_t* width);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_OPTIONS_H_
