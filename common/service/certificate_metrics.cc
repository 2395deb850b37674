#include "common/service/certificate_metrics.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cmath>
#include <limits>
#include <memory>

#include "common/log.h"
#include "common/str_cat.h"
#include "common/wall_clock.h"

namespace distill {
namespace {

constexpr double kDay = 86400;
constexpr double kWarnSeconds = 14 * kDay;

void ExportOne(const std::string& file, const std::string& path, MetricsRegistry* registry) {
  if (path.empty()) return;
  const StatusOr<double> expiry = CertificateExpiry(path);
  if (!expiry.ok()) return;
  registry
      ->GetGauge("distill_tls_certificate_expiry_timestamp_seconds",
                 "Unix time at which a certificate this process uses ends.", {{"file", file}})
      .Set(*expiry);
  const double left = *expiry - WallClock();
  if (left > kWarnSeconds) return;
  LogWarning(left <= 0 ? "a certificate has ended: peers will refuse the connection; renew it and restart this process"
                       : "a certificate ends soon; renew it and restart this process",
             {{"flag", StrCat("--tls-", file)}, {"path", path}, {"days_left", std::floor(left / kDay)}});
}

}  // namespace

StatusOr<double> CertificateExpiry(const std::string& path) {
  const std::unique_ptr<BIO, int (*)(BIO*)> in(BIO_new_file(path.c_str(), "rb"), &BIO_free);
  const std::unique_ptr<ASN1_TIME, void (*)(ASN1_TIME*)> epoch(ASN1_TIME_set(nullptr, 0), &ASN1_TIME_free);
  double earliest = std::numeric_limits<double>::infinity();
  while (in != nullptr) {
    const std::unique_ptr<X509, void (*)(X509*)> certificate(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr),
                                                             &X509_free);
    if (certificate == nullptr) break;
    int days = 0, seconds = 0;
    if (ASN1_TIME_diff(&days, &seconds, epoch.get(), X509_get0_notAfter(certificate.get())) != 1) continue;
    earliest = std::min(earliest, days * kDay + seconds);
  }
  ERR_clear_error();  // the end of the file counts as an error to OpenSSL
  if (std::isinf(earliest)) return absl::InvalidArgumentError(StrCat("'", path, "' holds no certificate in PEM form"));
  return earliest;
}

void ExportCertificateExpiry(const RpcSecurity& security, MetricsRegistry* registry) {
  ExportOne("cert", security.cert_file, registry);
  ExportOne("ca", security.ca_file, registry);
}

}  // namespace distill
