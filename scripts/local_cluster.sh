# Sourced by distill_demo.sh, train_teacher.sh and results.sh: a cluster of real processes on loopback. Not run by itself.
#
#   start_cluster FOLDER TEACHERS STUDENTS [MODEL=FILE]   one coordinator, teachers and students; sets DISTILL_COORDINATOR
#                                                         (students find data below CLUSTER_DATA_ROOT, default Debian's data sets)
#   stop_cluster                                          ends them all; also runs on exit
BIN=${DISTILL_BIN:-$BUILD/dev/bin}
CLUSTER_PIDS=()

start_service() {  # NAME PROGRAM FLAG...: starts it and waits for its ready file
  local name=$1 program=$2
  shift 2
  rm -f "$CLUSTER_DIR/$name.ready"
  "$BIN/$program" --ready-file "$CLUSTER_DIR/$name.ready" "$@" >>"$CLUSTER_DIR/$name.log" 2>&1 &
  local pid=$!
  CLUSTER_PIDS+=("$pid")
  for _ in $(seq 600); do
    [ -f "$CLUSTER_DIR/$name.ready" ] && return
    kill -0 "$pid" 2>/dev/null || { tail -n 20 "$CLUSTER_DIR/$name.log" >&2; die "$program ($name) stopped; its log is $CLUSTER_DIR/$name.log"; }
    sleep 0.1
  done
  die "$program ($name) is not ready after 60 s; its log is $CLUSTER_DIR/$name.log"
}

start_cluster() {
  CLUSTER_DIR=$1
  local teachers=$2 students=$3 model=${4:-} i
  mkdir -p "$CLUSTER_DIR/work"
  trap stop_cluster EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  start_service coordinator distill-coordinator --listen 127.0.0.1:0 --state-dir "$CLUSTER_DIR/state" --files-dir "$CLUSTER_DIR/work"
  DISTILL_COORDINATOR=$(sed -n 's/^address=//p' "$CLUSTER_DIR/coordinator.ready")
  export DISTILL_COORDINATOR
  for ((i = 0; i < teachers; ++i)); do
    start_service "teacher-$i" distill-teacher --id "teacher-$i" --threads 1 --model "$model" --coordinator "$DISTILL_COORDINATOR"
  done
  for ((i = 0; i < students; ++i)); do
    start_service "student-$i" distill-student --id "student-$i" --coordinator "$DISTILL_COORDINATOR" --data-root "${CLUSTER_DATA_ROOT:-/usr/share/datasets}" --work-dir "$CLUSTER_DIR/work"
  done
}

stop_cluster() {
  trap - EXIT
  [ ${#CLUSTER_PIDS[@]} -gt 0 ] || return 0
  kill "${CLUSTER_PIDS[@]}" 2>/dev/null || true
  for pid in "${CLUSTER_PIDS[@]}"; do
    for _ in $(seq 150); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  CLUSTER_PIDS=()
}
