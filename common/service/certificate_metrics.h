// When this process's certificates end, for an alert that comes before the outage.
#ifndef DISTILL_COMMON_SERVICE_CERTIFICATE_METRICS_H_
#define DISTILL_COMMON_SERVICE_CERTIFICATE_METRICS_H_

#include <string>

#include "common/metrics/metrics.h"
#include "common/rpc/rpc_options.h"
#include "common/status.h"

namespace distill {

// The earliest end (notAfter, Unix seconds) of the certificates in a PEM file. kInvalidArgument: unreadable, or there
// is none in it.
StatusOr<double> CertificateExpiry(const std::string& path);

// Sets distill_tls_certificate_expiry_timestamp_seconds for --tls-cert (label file="cert") and --tls-ca (file="ca"), if
// given, and logs a warning for one that has ended or ends within two weeks. Files are read when a process starts, so
// this is about what it uses, not about what lies on the disk by now. An unreadable file is left to the RPC layer,
// which refuses it with a better message.
void ExportCertificateExpiry(const RpcSecurity& security, MetricsRegistry* registry);

}  // namespace distill

#endif  // DISTILL_COMMON_SERVICE_CERTIFICATE_METRICS_H_
