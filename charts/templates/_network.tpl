{{/* The network servers: a set of replicas, and the same container beside each agent. Their flags
     and files are those that muprover/serving_config.py writes for a run on one machine. */}}

{{- define "muprover.networkFiles" -}}
{{- $batching := .Values.network.batching -}}
models.config: |
  model_config_list {
    config {
      name: {{ .Values.network.modelName | quote }}
      base_path: "/models/{{ include "muprover.run" . }}"
      model_platform: "tensorflow"
      model_version_policy {
        latest {
          num_versions: {{ .Values.network.keepVersions }}
        }
      }
    }
  }
monitoring.config: |
  prometheus_config {
    enable: true
    path: "/monitoring/prometheus/metrics"
  }
{{- if include "muprover.isBatching" . }}
batching.config: |
  max_batch_size {
    value: {{ default $batching.maxBatchSize (last $batching.allowedBatchSizes) | int }}
  }
  batch_timeout_micros {
    value: {{ $batching.timeoutMicros | int }}
  }
  max_enqueued_batches {
    value: {{ $batching.maxEnqueuedBatches | int }}
  }
  num_batch_threads {
    value: {{ $batching.numBatchThreads | int }}
  }
  {{- range $batching.allowedBatchSizes }}
  allowed_batch_sizes: {{ . | int }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Left alone, the embedded server finds its own batch sizes; the stock one has to be told. */}}
{{- define "muprover.isBatching" -}}
{{- $isStock := eq (include "muprover.networkServer" .) "tensorflow-serving" -}}
{{- if or $isStock .Values.network.batching.allowedBatchSizes }}true{{ end -}}
{{- end }}

{{/* Which search agents and the evaluator ask for: the stock server compiles one of its own name. */}}
{{- define "muprover.searchArgs" -}}
{{- $isStock := eq (include "muprover.networkServer" .) "tensorflow-serving" -}}
{{- with .Values.network -}}
- --search-signature
- {{ ternary "search_xla" "search" (and $isStock (ternary .xla.gpu .xla.cpu .gpu.enabled)) }}
{{- end -}}
{{- end }}

{{/* Call with (dict "root" $ "name" "network" "metricsName" NAME-OF-THE-PORT). */}}
{{- define "muprover.network" -}}
{{- $network := .root.Values.network -}}
{{- $server := include "muprover.networkServer" .root -}}
{{- $hasPuller := include "muprover.hasPuller" . -}}
{{- $pulls := and (include "muprover.pulls" .root) (not $hasPuller) -}}
withoutGame: "true"
args:
  {{- include (printf "muprover.networkArgs.%s" $server) . | nindent 2 }}
container:
  {{- include (printf "muprover.networkContainer.%s" $server) . | nindent 2 }}
  resources:
    {{- include "muprover.gpuResources" $network | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models{{ if not $pulls }}, readOnly: true{{ end }}}
    - {name: network, mountPath: /etc/muprover/network, readOnly: true}
{{- if $hasPuller }}
initContainers:
  - {{ include "muprover.puller" .root | nindent 4 | trim }}
{{- end }}
tolerations:
  {{- include "muprover.gpuTolerations" $network | nindent 2 }}
{{- with include "muprover.onTrainersNode" . }}
affinity:
  {{- . | nindent 2 }}
{{- end }}
volumes:
  {{- include "muprover.networkVolumes" . | nindent 2 }}
{{- end }}

{{/* Non-empty if somebody else has to pull versions for the network servers. */}}
{{- define "muprover.hasPuller" -}}
{{- if eq (include "muprover.networkServer" .root) "tensorflow-serving" }}{{ include "muprover.pulls" .root }}{{ end -}}
{{- end }}

{{/* What pulls versions for a server that cannot do so itself; there before it is, as long as it is. */}}
{{- define "muprover.puller" -}}
{{- $component := dict "root" . "name" "pull" "withoutGame" "true" -}}
{{- $values := include "muprover.component" $component | fromYaml -}}
{{- $health := add .Values.healthPort 1 -}}
{{- $metrics := add .Values.metrics.port 2 -}}
{{- $args := list "pull" "--source" (include "muprover.trainerAddress" .) -}}
{{- $args = concat $args (list "--saved-models" (printf "/models/%s" (include "muprover.run" .))) -}}
{{- $args = concat $args (list "--health-port" (toString $health)) -}}
{{- $args = concat $args (include "muprover.operationArgs" (merge (dict "metricsPort" $metrics) $component) | fromYamlArray) -}}
{{- $ports := list (dict "name" "pull-health" "number" $health) -}}
{{- if .Values.metrics.enabled }}{{ $ports = append $ports (dict "name" "pull-metrics" "number" $metrics) }}{{ end -}}
{{- $container := dict "ports" $ports "volumeMounts" (list (dict "name" "models" "mountPath" "/models")) -}}
{{- $container = merge $container (include "muprover.probes" $health | fromYaml) -}}
{{ include "muprover.container" (merge (dict "values" $values "args" $args "container" $container) $component) }}
restartPolicy: Always
{{- end }}

{{- define "muprover.networkVolumes" -}}
{{- if include "muprover.pulls" .root }}
- name: models
  emptyDir:
    sizeLimit: {{ .root.Values.models.persistence.size }}
{{- else }}
- {{ include "muprover.modelsVolume" . | nindent 2 | trim }}
{{- end }}
- name: network
  configMap:
    name: {{ include "muprover.fullname" .root }}-network
{{- end }}

{{- define "muprover.networkArgs.embedded" -}}
{{- $network := .root.Values.network -}}
- network
- --port
- {{ $network.ports.grpc | quote }}
- --rest-api-port
- {{ $network.ports.rest | quote }}
- --model-config-file
- /etc/muprover/network/models.config
- --monitoring-config-file
- /etc/muprover/network/monitoring.config
{{- if include "muprover.isBatching" .root }}
- --enable-batching
- --batching-parameters-file
- /etc/muprover/network/batching.config
{{- end }}
- --file-system-poll-wait-seconds
- {{ $network.pollWaitSeconds | quote }}
{{- if include "muprover.pulls" .root }}
- --model-source
- {{ include "muprover.trainerAddress" .root }}
{{- end }}
{{- with $network.threads }}
- --tensorflow-intra-op-parallelism
- {{ . | quote }}
{{- end }}
- --enable-serialization-as-tensor-content
{{- with include "muprover.healthArgs" (include "muprover.networkHealth" . | fromYaml | merge (dict "root" .root)) }}
{{ . }}
{{- end }}
{{ include "muprover.operationArgs" (merge (dict "metricsPort" (include "muprover.networkMetricsPort" .)) .) }}
{{- end }}

{{- define "muprover.networkContainer.embedded" -}}
variant: {{ ternary "-gpu" "" .root.Values.network.gpu.enabled | quote }}
ports:
  - {name: grpc, number: {{ .root.Values.network.ports.grpc }}}
  - {name: rest, number: {{ .root.Values.network.ports.rest }}}
  {{- $health := include "muprover.networkHealth" . | fromYaml | merge (dict "root" .root) }}
  {{- with include "muprover.healthPorts" $health }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- if .root.Values.metrics.enabled }}
  - {name: {{ .metricsName }}, number: {{ include "muprover.networkMetricsPort" . }}}
  {{- end }}
{{ include "muprover.serverProbes" $health }}
env:
  {{- include "muprover.gpuEnv" .root.Values.network | nindent 2 }}
{{- end }}

{{- define "muprover.networkArgs.tensorflow-serving" -}}
{{- $network := .root.Values.network -}}
- --port={{ $network.ports.grpc }}
- --rest_api_port={{ $network.ports.rest }}
- --model_config_file=/etc/muprover/network/models.config
- --monitoring_config_file=/etc/muprover/network/monitoring.config
- --enable_batching=true
- --batching_parameters_file=/etc/muprover/network/batching.config
- --file_system_poll_wait_seconds={{ $network.pollWaitSeconds }}
- --grpc_max_threads={{ $network.grpcMaxThreads }}
- --grpc_channel_arguments=grpc.max_connection_age_ms=60000
- --num_load_threads=1
- --enable_serialization_as_tensor_content=true
- --enable_grpc_healthcheck_service=true
- --enable_profiler={{ $network.profiler }}
- --allow_version_labels_for_unavailable_models=true
{{- if $network.xla.cpu }}
- --xla_cpu_compilation_enabled=true
{{- end }}
{{- if $network.xla.gpu }}
- --xla_gpu_compilation_enabled=true
{{- end }}
{{- with $network.threads }}
- --tensorflow_intra_op_parallelism={{ . }}
{{- end }}
{{- end }}

{{/* The stock server opens its ports when it has a version, and ignores SIGTERM: the pause lets
     clients find other replicas before it is killed. */}}
{{- define "muprover.networkContainer.tensorflow-serving" -}}
{{- $network := .root.Values.network -}}
{{- $image := deepCopy $network.stockImage -}}
{{- if $network.gpu.enabled }}{{ $_ := set $image "tag" (printf "%s-gpu" $image.tag) }}{{ end -}}
image:
  {{- toYaml $image | nindent 2 }}
command: [/usr/bin/tensorflow_model_server]
ports:
  - {name: grpc, number: {{ $network.ports.grpc }}}
  - {name: {{ ternary "rest-metrics" "rest" .root.Values.metrics.enabled }}, number: {{ $network.ports.rest }}}
startup:
  grpc: {port: {{ $network.ports.grpc }}}
  {{- toYaml $network.startup | nindent 2 }}
readiness:
  httpGet:
    path: /v1/models/{{ $network.modelName }}/metadata
    port: {{ $network.ports.rest }}
liveness:
  grpc: {port: {{ $network.ports.grpc }}}
lifecycle:
  preStop:
    exec:
      command: [sleep, "5"]
env:
  {{- include "muprover.gpuEnv" $network | nindent 2 }}
{{- end }}

{{/* Beside an agent, whose own health has the usual port. */}}
{{- define "muprover.networkHealth" -}}
number: {{ add .root.Values.healthPort (ternary 0 1 (eq .metricsName "metrics")) }}
portName: {{ ternary "health" "network-health" (eq .metricsName "metrics") }}
grpc: {{ .root.Values.network.ports.grpc }}
{{- end }}

{{/* Beside an agent, whose own metrics have the usual port. */}}
{{- define "muprover.networkMetricsPort" -}}
{{- add .root.Values.metrics.port (ternary 0 1 (eq .metricsName "metrics")) -}}
{{- end }}
