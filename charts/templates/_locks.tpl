{{/* Locks: certificates and a token, as files in every pod and as variables that tell of them. */}}

{{- define "muprover.tlsSecret" -}}
{{- default (printf "%s-tls" (include "muprover.fullname" .)) .Values.locks.tls.existingSecret -}}
{{- end }}

{{- define "muprover.locksEnv" -}}
{{- with .Values.locks -}}
{{- if .tls.enabled -}}
- {name: MUPROVER_TLS, value: /etc/muprover/tls}
- {name: MUPROVER_TLS_CLIENTS, value: {{ .tls.clients }}}
{{ end -}}
{{- if .token.existingSecret -}}
- {name: MUPROVER_TOKEN_FILE, value: /etc/muprover/token/{{ .token.key }}}
{{ end -}}
{{- end -}}
{{- end }}

{{/* Whole folders: single files (subPath) would not follow the Secret when it changes. */}}
{{- define "muprover.locksMounts" -}}
{{- with .Values.locks -}}
{{- if .tls.enabled -}}
- {name: tls, mountPath: /etc/muprover/tls, readOnly: true}
{{ end -}}
{{- if .token.existingSecret -}}
- {name: token, mountPath: /etc/muprover/token, readOnly: true}
{{ end -}}
{{- end -}}
{{- end }}

{{- define "muprover.locksVolumes" -}}
{{- with .Values.locks -}}
{{- if .tls.enabled -}}
- name: tls
  secret: {secretName: {{ include "muprover.tlsSecret" $ }}, defaultMode: 0440}
{{ end -}}
{{- if .token.existingSecret -}}
- name: token
  secret: {secretName: {{ .token.existingSecret }}, defaultMode: 0440}
{{ end -}}
{{- end -}}
{{- end }}

{{/* gRPC probes speak no TLS: behind it, servers tell of their health on a port of its own.
     Call with (dict "root" $ "number" PORT), PORT being the health port. */}}
{{- define "muprover.healthArgs" -}}
{{- if .root.Values.locks.tls.enabled -}}
- --health-port
- {{ .number | quote }}
{{- end -}}
{{- end }}

{{- define "muprover.healthPorts" -}}
{{- if .root.Values.locks.tls.enabled -}}
- {name: {{ default "health" .portName }}, number: {{ .number }}}
{{- end -}}
{{- end }}

{{/* Probes of a server: (dict "root" $ "grpc" PORT "number" HEALTH-PORT). */}}
{{- define "muprover.serverProbes" -}}
{{- include "muprover.probes" (ternary .number .grpc .root.Values.locks.tls.enabled) -}}
{{- end }}
