#include "coordinator/web/status_page.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "common/http/form.h"
#include "common/log.h"
#include "common/rpc/address.h"
#include "common/str_cat.h"
#include "common/wall_clock.h"
#include "coordinator/web/assets.h"
#include "coordinator/web/job_files.h"
#include "coordinator/web/login.h"
#include "coordinator/web/status_api.h"

namespace distill::web {
namespace {

constexpr std::string_view kApi = "/api/v1/";
constexpr std::string_view kAssets = "/assets/";
constexpr std::string_view kFiles = "/files/";

// Nothing but our own files runs, nothing frames us, and no address leaks to other sites.
void AddSecurityHeaders(HttpResponse* response) {
  if (response->later != nullptr) {
    response->later = [later = std::move(response->later)] {
      HttpResponse made = later();
      AddSecurityHeaders(&made);
      return made;
    };
    return;
  }
  response->headers["Content-Security-Policy"] =
      "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
      "form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
  response->headers["X-Content-Type-Options"] = "nosniff";
  response->headers["X-Frame-Options"] = "DENY";
  response->headers["Referrer-Policy"] = "no-referrer";
  response->headers["Cross-Origin-Opener-Policy"] = "same-origin";
  response->headers["Cross-Origin-Resource-Policy"] = "same-origin";
}

HttpResponse Text(int status, std::string text) { return {.status = status, .body = std::move(text) + "\n"}; }
HttpResponse GoTo(const std::string& path) {
  return {.status = 303, .body = "", .headers = {{"Location", path}, {"Cache-Control", "no-store"}}};
}

// What a handler does at once, it does on the HTTP server's thread, which must not wait: who asks, and the page's own
// files. What asks the coordinator, whose locks are held while its store writes, is left to HttpLane::kState; files of
// jobs to HttpLane::kFiles. Both use constant members only.
class StatusPage : public std::enable_shared_from_this<StatusPage> {
 public:
  StatusPage(Coordinator* coordinator, const StatusPageOptions& options)
      : coordinator_(coordinator), options_(options), login_(options.token) {
    const StatusOr<HostPort> listen = ParseHostPort(options.listen);
    loopback_ = listen.ok() && IsLoopback(listen->host);
    if (!loopback_ && !options_.insecure && (options_.token.empty() || !options_.tls)) {
      refusal_ = StrCat("the status page is not served on ", options_.listen, ", which is not loopback, without ",
                        options_.token.empty() ? "a token (--token-file)" : "",
                        options_.token.empty() && !options_.tls ? " and " : "",
                        options_.tls ? "" : "TLS (--tls-cert, --tls-key)",
                        "; give them, or --insecure on a network you trust");
      LogInfo(refusal_);
    }
  }

  HttpResponse Index(const HttpRequest& request) {
    if (const std::string refusal = RefusalFor(request); !refusal.empty()) return Text(403, refusal);
    switch (login_.Check(request, Now())) {
      case Login::Verdict::kAllowed:
        return Embedded("index.html", request);
      case Login::Verdict::kMissing:
        return GoTo("/login");
      default:
        return Refused(request, login_.WaitSeconds(request.peer, Now()) > 0);
    }
  }

  HttpResponse AssetFile(const HttpRequest& request) {
    if (const std::string refusal = RefusalFor(request); !refusal.empty()) return Text(403, refusal);
    const std::string name = request.path.substr(kAssets.size());
    // Pages have addresses of their own.
    if (name.ends_with(".html")) return Text(404, "no such file");
    return Embedded(name, request);
  }

  HttpResponse Api(const HttpRequest& request) {
    if (std::optional<HttpResponse> refused = RefuseData(request)) return *std::move(refused);
    const std::string_view path = std::string_view(request.path).substr(kApi.size());
    constexpr std::string_view kJobs = "jobs/", kList = "/files";
    if (path == "session") return WithDate(Session(request));
    std::string files_of;
    if (path.starts_with(kJobs) && path.ends_with(kList) && path.size() > kJobs.size() + kList.size()) {
      files_of = path.substr(kJobs.size(), path.size() - kJobs.size() - kList.size());
    }
    return {.later =
                [self = shared_from_this(), path = std::string(path), files_of, request] {
                  if (!files_of.empty()) return self->ListFiles(files_of, request);
                  return self->WithDate(AnswerApi(self->coordinator_, path, request));
                },
            .lane = HttpLane::kState};
  }

  HttpResponse File(const HttpRequest& request) {
    if (std::optional<HttpResponse> refused = RefuseData(request)) return *std::move(refused);
    if (options_.files_dir.empty()) return NoFiles();
    return {.later = [self = shared_from_this(), request] { return self->FileOfJob(request); },
            .lane = HttpLane::kState};
  }

  HttpResponse LoginForm(const HttpRequest& request) {
    if (const std::string refusal = RefusalFor(request); !refusal.empty()) return Text(403, refusal);
    if (login_.Check(request, Now()) == Login::Verdict::kAllowed) return GoTo("/");
    return Form(200, "");
  }

  HttpResponse LogIn(const HttpRequest& request) {
    if (const std::string refusal = RefusalForPost(request); !refusal.empty()) return Text(403, refusal);
    if (!login_.required()) return GoTo("/");
    switch (login_.CheckToken(ParseForm(request.body)["token"], request.peer, Now())) {
      case Login::Verdict::kAllowed: {
        HttpResponse response = GoTo("/");
        response.headers["Set-Cookie"] = login_.MakeCookie(request.tls, Now());
        LogInfo("status page: logged in", {{"peer", request.peer}});
        return response;
      }
      case Login::Verdict::kWait:
        return Refused(request, true);
      default:
        return Refused(request, false);
    }
  }

  HttpResponse LogOut(const HttpRequest& request) {
    if (const std::string refusal = RefusalForPost(request); !refusal.empty()) return Text(403, refusal);
    HttpResponse response = GoTo(login_.required() ? "/login" : "/");
    response.headers["Set-Cookie"] = Login::ClearCookie(request.tls);
    return response;
  }

 private:
  double Now() const { return options_.now ? options_.now() : WallClock(); }

  // By this the page knows the coordinator's clock, to which all times in the answers belong.
  HttpResponse WithDate(HttpResponse response) const {
    response.headers["Date"] = ToStd(absl::FormatTime(
        "%a, %d %b %Y %H:%M:%S GMT", absl::FromUnixSeconds(static_cast<int64_t>(Now())), absl::UTCTimeZone()));
    return response;
  }

  // Why this request is not answered at all; "" when it is.
  std::string RefusalFor(const HttpRequest& request) const {
    if (!refusal_.empty()) return refusal_;
    if (!loopback_ && !options_.insecure && !request.tls) {
      return "the status page is served over TLS here: write https:// in front of the same address";
    }
    if (loopback_ && !login_.required()) {
      // Without this a site that the user visits could give its own name this machine's address and read the page.
      const auto host = request.headers.find("host");
      const std::string name = host == request.headers.end() ? "" : host->second;
      const StatusOr<HostPort> parsed = ParseHostPort(name);
      if (!IsLoopback(parsed.ok() ? parsed->host : name)) {
        return "without a token the status page answers only to addresses of this machine, such as 127.0.0.1 or "
               "localhost; give the coordinator --token-file";
      }
    }
    return "";
  }

  // A form on another site could log the visitor out, or make his address wait by sending wrong tokens from it.
  // Browsers say where a request comes from.
  std::string RefusalForPost(const HttpRequest& request) const {
    const auto site = request.headers.find("sec-fetch-site");
    if (site != request.headers.end() && site->second != "same-origin" && site->second != "none") {
      return "forms of other sites are not answered";
    }
    return RefusalFor(request);
  }

  // Why data is not given to this request; nullopt when it is.
  std::optional<HttpResponse> RefuseData(const HttpRequest& request) {
    if (const std::string refusal = RefusalFor(request); !refusal.empty()) return JsonError(403, refusal);
    switch (login_.Check(request, Now())) {
      case Login::Verdict::kAllowed:
        break;
      case Login::Verdict::kMissing:
      case Login::Verdict::kWrong: {
        const bool missing = !request.headers.contains("authorization");
        HttpResponse response =
            JsonError(401, missing ? "a token is needed: send 'Authorization: Bearer TOKEN', or log in at /login"
                                   : "the token is wrong");
        response.headers["WWW-Authenticate"] = "Bearer realm=\"distill\"";
        return response;
      }
      case Login::Verdict::kWait: {
        const int seconds = login_.WaitSeconds(request.peer, Now());
        HttpResponse response = JsonError(429, StrCat("too many wrong tokens; try again in ", seconds, " s"));
        response.headers["Retry-After"] = StrCat(seconds);
        return response;
      }
    }
    return std::nullopt;
  }

  static HttpResponse NoFiles() {
    return JsonError(404,
                     "this coordinator shows no files: start it with --files-dir, the folder where it sees the "
                     "students' --work-dir");
  }

  // On HttpLane::kState, as the next.
  HttpResponse FileOfJob(const HttpRequest& request) const {
    const std::string_view rest = std::string_view(request.path).substr(kFiles.size());
    const std::string job(rest.substr(0, rest.find('/')));
    // Folders of jobs that this coordinator knows, and no others; by id, as the folders are called.
    const StatusOr<JobRecord> known = coordinator_->Get(job);
    if (!known.ok() || known->id != job || rest.size() <= job.size()) {
      return JsonError(404, "no such file: files have addresses like /files/JOB/student.safetensors, JOB being an id");
    }
    return {.later = [folder = options_.files_dir, job, path = std::string(rest.substr(job.size() + 1)), request] {
      return SendJobFile(folder, job, path, request);
    }};
  }

  HttpResponse ListFiles(const std::string& job, const HttpRequest& request) const {
    if (options_.files_dir.empty()) return NoFiles();
    const StatusOr<JobRecord> known = coordinator_->Get(job);
    if (!known.ok()) return AnswerApi(coordinator_, StrCat("jobs/", job), request);
    return {.later = [folder = options_.files_dir, job = known->id, request] {
      const StatusOr<std::vector<JobFile>> found = ListJobFiles(folder, job);
      // What is wrong with the folder is an answer too: the page shows it, and goes on.
      nlohmann::ordered_json out = {{"files", nlohmann::ordered_json::array()},
                                    {"problem", found.ok() ? "" : std::string(ToStd(found.status().message()))}};
      if (found.ok()) {
        for (const JobFile& file : *found) {
          out["files"].push_back({{"path", file.path}, {"bytes", file.bytes}, {"modified_time", file.modified_time}});
        }
      }
      return JsonAnswer(out.dump(), request);
    }};
  }

  static HttpResponse Embedded(std::string_view name, const HttpRequest& request) {
    const Asset* const asset = FindAsset(name);
    if (asset == nullptr) return Text(404, "no such file");
    HttpResponse response{.content_type = std::string(asset->content_type),
                          .headers = {{"ETag", asset->etag}, {"Cache-Control", "no-cache"}}};
    const auto known = request.headers.find("if-none-match");
    if (known != request.headers.end() && known->second == asset->etag) {
      response.status = 304;
    } else {
      response.body = std::string(asset->content);
    }
    return response;
  }

  // `message` is one of ours, never the user's.
  static HttpResponse Form(int status, std::string_view message) {
    constexpr std::string_view kMark = "<!-- message -->";
    const Asset* const asset = FindAsset("login.html");
    std::string html(asset->content);
    if (!message.empty()) {
      html.replace(html.find(kMark), kMark.size(), StrCat("<p class=\"error\" role=\"alert\">", message, "</p>"));
    }
    return {.status = status,
            .content_type = std::string(asset->content_type),
            .body = std::move(html),
            .headers = {{"Cache-Control", "no-store"}}};
  }

  HttpResponse Refused(const HttpRequest& request, bool wait) {
    if (!wait) return Form(401, "This is not the coordinator's token. It stands in the file given to --token-file.");
    const int seconds = login_.WaitSeconds(request.peer, Now());
    HttpResponse response = Form(429, StrCat("Too many wrong tokens. Try again in ", seconds, " s."));
    response.headers["Retry-After"] = StrCat(seconds);
    return response;
  }

  HttpResponse Session(const HttpRequest&) const {
    return {.content_type = "application/json",
            .body = StrCat("{\"login\":", login_.required() ? "true" : "false",
                           ",\"files\":", options_.files_dir.empty() ? "false" : "true", "}"),
            .headers = {{"Cache-Control", "no-store"}}};
  }

  Coordinator* const coordinator_;  // not owned: outlives the HTTP server
  const StatusPageOptions options_;
  bool loopback_ = false;
  std::string refusal_;  // constant after construction
  Login login_;
};

}  // namespace

std::map<std::string, HttpHandler> StatusPageRoutes(Coordinator* coordinator, const StatusPageOptions& options) {
  const auto page = std::make_shared<StatusPage>(coordinator, options);  // shared by the handlers, which are copied
  const auto route = [&](HttpResponse (StatusPage::*answer)(const HttpRequest&)) -> HttpHandler {
    return [page, answer](const HttpRequest& request) {
      HttpResponse response = (*page.*answer)(request);
      AddSecurityHeaders(&response);  // also to what comes later
      return response;
    };
  };
  return {{"/", route(&StatusPage::Index)},
          {"/assets/*", route(&StatusPage::AssetFile)},
          {"/api/v1/*", route(&StatusPage::Api)},
          {"/files/*", route(&StatusPage::File)},
          {"/login", route(&StatusPage::LoginForm)},
          {"POST /login", route(&StatusPage::LogIn)},
          {"POST /logout", route(&StatusPage::LogOut)}};
}

}  // namespace distill::web
