{{/* Names, labels and what the values say about each component. */}}

{{- define "muprover.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* At most 40 characters, so that every suffix fits; a longer name ends in its own hash. */}}
{{- define "muprover.fullname" -}}
{{- $name := include "muprover.name" . -}}
{{- $long := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $long = default $long .Values.fullnameOverride -}}
{{- if gt (len $long) 40 -}}
{{- printf "%s-%s" ($long | trunc 31 | trimSuffix "-") (sha256sum $long | trunc 8) -}}
{{- else -}}
{{- $long | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Selectors cannot be changed after the installation: nothing may ever be added here.
     Call with (dict "root" $ "name" COMPONENT). */}}
{{- define "muprover.selector" -}}
app.kubernetes.io/name: {{ include "muprover.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "muprover.labels" -}}
{{- $own := include "muprover.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "muprover" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- toYaml (merge $own .root.Values.commonLabels) -}}
{{- end }}

{{/* Metadata of an object: (dict "root" $ "name" COMPONENT "suffix" … "annotations" … "labels" …). */}}
{{- define "muprover.metadata" -}}
{{- range $section := list "locks" "pull" }}
{{- if not (hasKey $.root.Values $section) }}
{{- fail (printf "no values for %q: those of an older chart are reused. Give --reset-then-reuse-values instead of --reuse-values" $section) }}
{{- end }}
{{- end -}}
metadata:
  name: {{ include "muprover.fullname" .root }}-{{ default .name .suffix }}
  namespace: {{ default .root.Release.Namespace .namespace }}
  labels:
    {{- toYaml (merge (include "muprover.labels" . | fromYaml) (default dict .labels)) | nindent 4 }}
  {{- with merge (deepCopy (default dict .annotations)) .root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* The values of a component, over those in `common`, as YAML. */}}
{{- define "muprover.component" -}}
{{- toYaml (mustMergeOverwrite (deepCopy .root.Values.common) (deepCopy (index .root.Values .name))) -}}
{{- end }}

{{- define "muprover.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "muprover.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* An image's address: (dict "root" $ "image" VALUES "variant" SUFFIX-OF-THE-TAG). */}}
{{- define "muprover.image" -}}
{{- $registry := default .image.registry .root.Values.global.imageRegistry -}}
{{- $tag := default (printf "%s%s" .root.Chart.AppVersion (default "" .variant)) .image.tag -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $tag }}{{ end -}}
{{- end }}

{{/* The run, whose name is a folder on each volume. */}}
{{- define "muprover.run" -}}
{{- default (printf "%s-%s" .Release.Name (.Values.game | replace "." "-")) .Values.runName -}}
{{- end }}

{{/* What `--game` is: a file of `games`, or a name. */}}
{{- define "muprover.game" -}}
{{- if hasKey .Values.games .Values.game -}}
/etc/muprover/games/{{ .Values.game }}.py
{{- else -}}
{{ .Values.game }}
{{- end -}}
{{- end }}

{{- define "muprover.networkServer" -}}
{{- if eq .Values.network.server "auto" -}}
{{- ternary "tensorflow-serving" "embedded" .Values.network.gpu.enabled -}}
{{- else -}}
{{- .Values.network.server -}}
{{- end -}}
{{- end }}

{{/* Non-empty if network servers pull versions from the trainer. */}}
{{- define "muprover.pulls" -}}
{{- if eq .Values.models.transfer "grpc" }}true{{ end -}}
{{- end }}

{{/* Non-empty if whoever mounts the models has to be on the trainer's node; without a trainer, it is
     on no node. */}}
{{- define "muprover.modelsOnOneNode" -}}
{{- $isShared := not (include "muprover.pulls" .) -}}
{{- with .Values.models.persistence -}}
{{- if and $isShared .sameNode (not (has "ReadWriteMany" .accessModes)) $.Values.trainer.replicaCount }}true{{ end -}}
{{- end -}}
{{- end }}

{{/* Addresses. Headless names resolve to every ready replica, among which clients go round. */}}
{{- define "muprover.environmentAddress" -}}
dns:///{{ include "muprover.fullname" . }}-environment:{{ .Values.environment.ports.grpc }}
{{- end }}

{{- define "muprover.replayAddress" -}}
dns:///{{ include "muprover.fullname" . }}-replay:{{ .Values.replay.ports.grpc }}
{{- end }}

{{- define "muprover.networkAddress" -}}
dns:///{{ include "muprover.fullname" . }}-network-headless:{{ .Values.network.ports.grpc }}
{{- end }}

{{- define "muprover.trainerAddress" -}}
dns:///{{ include "muprover.fullname" . }}-trainer:{{ .Values.trainer.ports.models }}
{{- end }}

{{/* The count of a component that nobody else scales: non-empty if it is the chart's business. */}}
{{- define "muprover.replicas" -}}
{{- if not (kindIs "invalid" .count) }}
replicas: {{ .count | int }}
{{- end -}}
{{- end }}

{{/* The agents that an autoscaler always leaves. */}}
{{- define "muprover.minAgents" -}}
{{- $scaling := .Values.agent.autoscaling -}}
{{- if kindIs "invalid" $scaling.minReplicas -}}
{{- max 1 (default 1 .Values.agent.replicaCount | int) -}}
{{- else -}}
{{- $scaling.minReplicas | int -}}
{{- end -}}
{{- end }}

{{/* The bytes of positions in the replay server, if they are more than its limit of memory. They are
     counted twice, as they are copied while their room grows. Of games of one's own, nothing is known. */}}
{{- define "muprover.replayBytes" -}}
{{- $bytes := dict "cartpole" 64 "connect_four" 404 "random_tictactoe" 148 "tictactoe" 148 -}}
{{- $size := dig "replay" "max_size" 0 .Values.config | int64 -}}
{{- $most := mul 2 $size (get $bytes .Values.game | default 0) -}}
{{- $limit := dig "limits" "memory" "" .Values.replay.resources | toString -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $unit := regexFind "[A-Za-z]*$" $limit -}}
{{- if and $limit (hasKey $units $unit) -}}
{{- if gt (float64 $most) (mulf (trimSuffix $unit $limit | float64) (get $units $unit)) }}{{ $most }}{{ end -}}
{{- end -}}
{{- end }}

{{/* The names of the claims. */}}
{{- define "muprover.modelsClaim" -}}
{{- default (printf "%s-models" (include "muprover.fullname" .)) .Values.models.persistence.existingClaim -}}
{{- end }}

{{- define "muprover.checkpointsClaim" -}}
{{- default (printf "%s-checkpoints" (include "muprover.fullname" .)) .Values.trainer.checkpoint.persistence.existingClaim -}}
{{- end }}

{{- define "muprover.replayClaim" -}}
{{- default (printf "%s-replay" (include "muprover.fullname" .)) .Values.replay.persistence.existingClaim -}}
{{- end }}

{{/* A claim: (dict "root" $ "name" COMPONENT "suffix" … "values" …). */}}
{{- define "muprover.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
{{ $annotations := deepCopy .values.annotations -}}
{{- if .values.keep }}{{ $_ := set $annotations "helm.sh/resource-policy" "keep" }}{{ end -}}
{{ include "muprover.metadata" (merge (dict "annotations" $annotations) .) }}
spec:
  accessModes:
    {{- toYaml .values.accessModes | nindent 4 }}
  {{- with default .root.Values.global.storageClass .values.storageClass }}
  storageClassName: {{ ternary "" . (eq . "-") | quote }}
  {{- end }}
  resources:
    requests:
      storage: {{ .values.size }}
  {{- with .values.selector }}
  selector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
