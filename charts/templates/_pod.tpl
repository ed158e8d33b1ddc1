{{/* Pods: what those of all components have in common.

Call "muprover.pod" with
  root, name       the context and the component
  args             the command line after the image's entry point
  container        more of the container, as a map: ports, volumeMounts, env, probes' questions …
  volumes          the component's own volumes
  initContainers   and containers that start before it
  affinity, tolerations, annotations, metricsPort, metricsPath
  withoutGame      non-empty for what knows nothing of games: the network servers
*/}}
{{- define "muprover.pod" -}}
{{- $root := .root -}}
{{- $values := include "muprover.component" . | fromYaml -}}
metadata:
  labels:
    {{- $labels := merge (include "muprover.labels" . | fromYaml) $values.podLabels -}}
    {{- toYaml (omit $labels "helm.sh/chart" "app.kubernetes.io/version") | nindent 4 }}
  annotations:
    {{- range $kind := ternary (list "network") (list "settings" "games") (not (empty .withoutGame)) }}
    checksum/{{ $kind }}: {{ include (printf "muprover.%sFiles" $kind) $root | sha256sum }}
    {{- end }}
    {{- if eq .name "network" }}
    muprover/run: {{ include "muprover.run" $root | quote }}  # changed by `muprover cluster game`, and back by Helm
    {{- end }}
    {{- if and $root.Values.metrics.enabled $root.Values.metrics.podAnnotations }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ default $root.Values.metrics.port .metricsPort | quote }}
    prometheus.io/path: {{ default "/metrics" .metricsPath }}
    {{- if $root.Values.locks.tls.enabled }}
    prometheus.io/scheme: https
    {{- end }}
    {{- end }}
    {{- with merge (default dict .annotations) $values.podAnnotations $root.Values.commonAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "muprover.serviceAccountName" $root }}
  automountServiceAccountToken: {{ $root.Values.serviceAccount.automount }}
  enableServiceLinks: false
  {{- with $root.Values.global.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with default $values.runtimeClassName (default dict $values.gpu).runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with concat $values.tolerations (default list .tolerations) }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "muprover.affinity" (dict "given" $values.affinity "own" .affinity) | fromYaml }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if $values.topologySpreadConstraints }}
    {{- toYaml $values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "muprover.selector" . | nindent 10 }}
    {{- end }}
  {{- with concat $values.initContainers (default list .initContainers) }}
  initContainers:
    {{- tpl (toYaml .) $root | nindent 4 }}
  {{- end }}
  containers:
    - {{ include "muprover.container" (merge (dict "values" $values) .) | nindent 6 | trim }}
    {{- with $values.sidecars }}
    {{- tpl (toYaml .) $root | nindent 4 }}
    {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if not .withoutGame }}
    - name: settings
      configMap:
        name: {{ include "muprover.fullname" $root }}-settings
    {{- if $root.Values.games }}
    - name: games
      configMap:
        name: {{ include "muprover.fullname" $root }}-games
    {{- end }}
    {{- end }}
    {{- if ne .name "tensorboard" }}
    {{- with include "muprover.locksVolumes" $root }}
    {{- . | trim | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with .volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- tpl (toYaml .) $root | nindent 4 }}
    {{- end }}
{{- end }}

{{/* What is given, and the chart's own terms besides. */}}
{{- define "muprover.affinity" -}}
{{- $own := default dict .own -}}
{{- $both := merge (deepCopy .given) (deepCopy $own) -}}
{{- range $kind, $rules := $own -}}
{{- range $rule, $terms := $rules -}}
{{- $_ := set (index $both $kind) $rule (concat (dig $kind $rule list $.given) $terms) -}}
{{- end -}}
{{- end -}}
{{- toYaml $both -}}
{{- end }}

{{- define "muprover.container" -}}
{{- $root := .root -}}
{{- $values := .values -}}
{{- $own := default dict .container -}}
{{- $sleeps := $root.Values.diagnosticMode.enabled -}}
name: {{ .name }}
image: {{ include "muprover.image" (dict "root" $root "image" (default $values.image $own.image) "variant" $own.variant) }}
imagePullPolicy: {{ (default $values.image $own.image).pullPolicy }}
securityContext:
  {{- toYaml $values.containerSecurityContext | nindent 2 }}
{{- if $sleeps }}
command: [sleep, infinity]
{{- else }}
{{- with (default $own.command $values.command) }}
command:
  {{- tpl (toYaml .) $root | nindent 2 }}
{{- end }}
args:
  {{- tpl (toYaml (concat (default .args $values.args) $values.extraArgs)) $root | nindent 2 }}
{{- end }}
env:
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  {{- if ne .name "tensorboard" }}
  {{- with include "muprover.locksEnv" $root }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- with concat (default list $own.env) $values.extraEnv }}
  {{- tpl (toYaml .) $root | nindent 2 }}
  {{- end }}
{{- with $values.extraEnvFrom }}
envFrom:
  {{- tpl (toYaml .) $root | nindent 2 }}
{{- end }}
{{- with $own.ports }}
ports:
  {{- range $port := . }}
  - {name: {{ $port.name }}, containerPort: {{ $port.number | int }}, protocol: TCP}
  {{- end }}
{{- end }}
{{- if not $sleeps }}
{{- range $kind := list "startup" "readiness" "liveness" }}
{{- $custom := index $values (printf "custom%sProbe" (title $kind)) }}
{{- with (default (index $own $kind | default dict) $custom) }}
{{ $kind }}Probe:
  {{- toYaml (ternary $custom (merge . (index $values (printf "%sProbe" $kind))) (not (empty $custom))) | nindent 2 }}
{{- end }}
{{- end }}
{{- with (default $own.lifecycle $values.lifecycle) }}
lifecycle:
  {{- tpl (toYaml .) $root | nindent 2 }}
{{- end }}
{{- end }}
{{- with $values.resources }}
resources:
  {{- toYaml (mustMergeOverwrite (deepCopy .) (default dict $own.resources)) | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if not .withoutGame }}
  - {name: settings, mountPath: /etc/muprover/settings, readOnly: true}
  {{- if $root.Values.games }}
  - {name: games, mountPath: /etc/muprover/games, readOnly: true}
  {{- end }}
  {{- end }}
  {{- if ne .name "tensorboard" }}
  {{- with include "muprover.locksMounts" $root }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- with concat (default list $own.volumeMounts) $values.extraVolumeMounts }}
  {{- tpl (toYaml .) $root | nindent 2 }}
  {{- end }}
{{- end }}

{{/* The arguments that all commands with a game have, as a list in YAML. */}}
{{- define "muprover.gameArgs" -}}
- --game
- {{ include "muprover.game" .root }}
- --config
- /etc/muprover/settings/settings.yaml
{{ include "muprover.operationArgs" . }}
{{- end }}

{{- define "muprover.operationArgs" -}}
{{- $values := include "muprover.component" . | fromYaml -}}
{{- if .root.Values.metrics.enabled -}}
- --metrics-port
- {{ default .root.Values.metrics.port .metricsPort | quote }}
{{ end -}}
- --log-level
- {{ $values.logLevel }}
- --log-format
- {{ $values.logFormat }}
{{- end }}

{{/* Probes of MuProver's own processes, which tell on one port whether they live ("alive") and
     whether they can do their work (""). gRPC probes take no named ports. */}}
{{- define "muprover.probes" -}}
startup:
  grpc: {port: {{ . | int }}, service: alive}
readiness:
  grpc: {port: {{ . | int }}}
liveness:
  grpc: {port: {{ . | int }}, service: alive}
{{- end }}

{{/* What a GPU needs: (dict "gpu" VALUES). */}}
{{- define "muprover.gpuResources" -}}
{{- if .gpu.enabled -}}
limits:
  {{ .gpu.resourceName }}: {{ .gpu.count | int }}
{{- end -}}
{{- end }}

{{- define "muprover.gpuTolerations" -}}
{{- if .gpu.enabled -}}
- {key: {{ .gpu.resourceName }}, operator: Exists, effect: NoSchedule}
{{- end -}}
{{- end }}

{{- define "muprover.gpuEnv" -}}
{{- if .gpu.enabled -}}
- {name: TF_FORCE_GPU_ALLOW_GROWTH, value: "true"}
- {name: CUDA_CACHE_PATH, value: /tmp/.nv}
{{- end -}}
{{- end }}

{{/* On the node of the pods of another component: (dict "root" $ "name" COMPONENT). */}}
{{- define "muprover.besideTerm" -}}
topologyKey: kubernetes.io/hostname
labelSelector:
  matchLabels:
    {{- include "muprover.selector" . | nindent 4 }}
{{- end }}

{{- define "muprover.onTrainersNode" -}}
{{- if include "muprover.modelsOnOneNode" .root -}}
podAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    - {{ include "muprover.besideTerm" (dict "root" .root "name" "trainer") | nindent 6 | trim }}
{{- end -}}
{{- end }}

{{/* The volume of models. */}}
{{- define "muprover.modelsVolume" -}}
name: models
{{- with .root.Values.models.persistence.volume }}
{{ toYaml . }}
{{- else }}
persistentVolumeClaim:
  claimName: {{ include "muprover.modelsClaim" .root }}
{{- end }}
{{- end }}

{{/* Scrapers look for ports whose name ends in "metrics". */}}
{{- define "muprover.metricsPort" -}}
{{- if .Values.metrics.enabled -}}
- {name: metrics, number: {{ .Values.metrics.port }}}
{{- end -}}
{{- end }}
