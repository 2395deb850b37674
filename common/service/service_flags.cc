#include "common/service/service_flags.h"

#include <fcntl.h>
#include <unistd.h>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/ascii.h"
#include "common/log.h"
#include "common/str_cat.h"

namespace distill {
namespace {

// "--log-level" -> "DISTILL_LOG_LEVEL".
void SetEnvironmentName(CLI::Option* option) {
  std::string name;
  for (const std::string& long_name : option->get_lnames()) {
    if (name.empty()) name = long_name;
  }
  if (name.empty() || !option->get_envname().empty()) return;
  for (char& c : name) c = c == '-' ? '_' : absl::ascii_toupper(static_cast<unsigned char>(c));
  option->envname("DISTILL_" + name);
}

Status WriteError(const std::string& what, const std::string& path) {
  return absl::UnavailableError(StrCat("--ready-file: cannot ", what, " '", path, "': ", std::strerror(errno)));
}

}  // namespace

void AddSecurityFlags(CLI::App* app, RpcSecurity* security) {
  for (CLI::Option* option : {
           app->add_option("--tls-ca", security->ca_file, "PEM file: certificates whose holders are trusted")
               ->type_name("FILE"),
           app->add_option("--tls-cert", security->cert_file, "PEM file: this process's certificate")
               ->type_name("FILE"),
           app->add_option("--tls-key", security->key_file, "PEM file: the certificate's private key")
               ->type_name("FILE"),
           app->add_option("--token-file", security->token_file, "File with the bearer token, one line")
               ->type_name("FILE"),
           app->add_flag("--insecure", security->insecure, "Allow plaintext on addresses other than loopback"),
       }) {
    option->group("Security");
    SetEnvironmentName(option);
  }
}

void AddServiceFlags(CLI::App* app, ServiceFlags* flags) {
  app->add_option("--log-level", flags->log_level, "Least severe messages that are written")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  app->add_flag("--log-json", flags->log_json, "Write the log as JSON, one object a line");
  app->add_option("--http-listen", flags->http_listen, "Address of /metrics, /healthz and /readyz; 'off' for none")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app->add_option("--ready-file", flags->ready_file, "Write the bound addresses here once ready")->type_name("FILE");
  AddSecurityFlags(app, &flags->security);
  app->set_version_flag("--version", VersionString(), "Print the version and exit");
  CLI::Option* const config = app->set_config("--config", "", "Read flags from this TOML file")->type_name("FILE");
  app->allow_config_extras(CLI::config_extras_mode::error);
  for (CLI::Option* option : app->get_options()) {
    if (option != config && option != app->get_help_ptr() && option != app->get_version_ptr())
      SetEnvironmentName(option);
  }
}

void InitServiceLogging(const ServiceFlags& flags, const std::string& service) {
  LogOptions log;
  ParseLogLevel(flags.log_level, &log.level);  // the flag accepts valid levels only
  log.json = flags.log_json;
  log.service = service;
  InitLogging(log);
}

std::string VersionString() { return StrCat(DISTILL_VERSION, DISTILL_WITH_CUDA ? " (cuda)" : " (cpu)"); }

Status WriteReadyFile(const std::string& path, const std::map<std::string, std::string>& values) {
  if (path.empty()) return OkStatus();
  std::string text;
  for (const auto& [key, value] : values) StrAppend(&text, key, "=", value, "\n");
  const std::string temporary = StrCat(path, ".", getpid(), ".tmp");
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return WriteError("create", temporary);
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const Status status = WriteError("write", temporary);
      close(fd);
      unlink(temporary.c_str());
      return status;
    }
    done += static_cast<size_t>(n);
  }
  if (close(fd) != 0 || rename(temporary.c_str(), path.c_str()) != 0) {
    const Status status = WriteError("write", path);
    unlink(temporary.c_str());
    return status;
  }
  return OkStatus();
}

}  // namespace distill
