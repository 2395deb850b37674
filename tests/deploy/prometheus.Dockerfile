# Stands in for prom/prometheus in compose_test.py: Debian's program, the same folders, user and port.
ARG BASE
FROM ${BASE}
COPY prometheus /usr/bin/prometheus
RUN install -d -o 65534 -g 65534 /prometheus
USER 65534
EXPOSE 9090
ENTRYPOINT ["prometheus"]
