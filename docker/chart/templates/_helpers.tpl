{{- define "mochi.name" -}}
{{- /* Names that Kubernetes makes of it are at most 63 long. */}}
{{- $name := ternary .Release.Name (printf "%s-mochi" .Release.Name) (contains "mochi" .Release.Name) }}
{{- $name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/*
Of a component: (list $ "gateway"). These labels never change, as selectors cannot. Pods have no
others, so that another version of the chart alone restarts none.
*/}}
{{- define "mochi.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: mochi-server
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Name and labels of an object: (list $ "gateway"). */}}
{{- define "mochi.metadata" -}}
{{- $top := index . 0 -}}
name: {{ include "mochi.name" $top }}-{{ index . 1 }}
namespace: {{ $top.Release.Namespace }}
labels:
  {{- include "mochi.labels" . | nindent 2 }}
{{- end }}

{{- define "mochi.labels" -}}
{{- $top := index . 0 -}}
{{ include "mochi.selector" . }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ $top.Chart.Name }}-{{ $top.Chart.Version }}
{{- end }}

{{- define "mochi.image" -}}
{{- $top := index . 0 -}}{{- $image := index . 1 -}}
image: {{ printf "%s:%s" $image.repository (default $top.Chart.AppVersion $image.tag) | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end }}

{{/* What all pods have: (list $ USER). */}}
{{- define "mochi.pod" -}}
{{- $top := index . 0 -}}{{- $user := index . 1 -}}
# Kubernetes would set MOCHI_… variables for a Service named mochi.
enableServiceLinks: false
# Another process is number 1: that one is not ended by a SIGTERM that it does not handle, so a
# worker that is loading would pass over it, and be killed later in a video.
shareProcessNamespace: true
automountServiceAccountToken: false
{{- with $top.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with $top.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $user }}
  runAsGroup: {{ $user }}
  fsGroup: {{ $user }}
  # Not each file of the weights at every start.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mochi.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/*
Variables of a container that requests no card: the image asks for all, which the runtime of NVIDIA
would give it, past the device plugin.
*/}}
{{- define "mochi.noCard" -}}
{{- dict "NVIDIA_VISIBLE_DEVICES" "void" | toJson }}
{{- end }}

{{- define "mochi.placement" -}}
{{- range $name := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $ $name }}
{{ $name }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Variables: (list $ SETTINGS OWN): settings of all, of the component, and the chart's own. */}}
{{- define "mochi.env" -}}
{{- $top := index . 0 -}}{{- $values := $top.Values -}}
{{- include "mochi.brokerEnv" $top }}
{{- $own := dict "MOCHI_DATA_DIR" "/data" "MOCHI_OUTPUTS" $values.outputs.s3 -}}
{{- $region := dict "AWS_REGION" $values.outputs.s3Region "AWS_ENDPOINT_URL" $values.outputs.s3Endpoint -}}
{{- range $name, $value := mergeOverwrite (include "mochi.settings" . | fromJson) $region $own (index . 2) }}
{{- if ne (toString $value) "" }}
- name: {{ $name }}
  value: {{ include "mochi.text" $value | quote }}
{{- end }}
{{- end }}
{{- with $values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
Settings of all and of a component: (list $ SETTINGS). With `merge`, `false`, 0 and "" of the
component would not count. An empty one is the server's default.
*/}}
{{- define "mochi.settings" -}}
{{- $settings := mergeOverwrite (deepCopy (index . 0).Values.settings) (index . 1) }}
{{- range $name, $value := deepCopy $settings }}
{{- if eq (toString $value) "" }}{{ $_ := unset $settings $name }}{{ end }}
{{- end }}
{{- toJson $settings }}
{{- end }}

{{/* Helm reads numbers as floats, and would write 1e+06. */}}
{{- define "mochi.text" -}}
{{- if and (kindIs "float64" .) (eq (toString .) (floor . | toString)) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "mochi.brokerEnv" -}}
{{- if not .Values.broker.bundled -}}
- name: MOCHI_REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ required "Set broker.urlSecret, or broker.bundled: true." .Values.broker.urlSecret }}, key: url}
{{- else if .Values.broker.passwordSecret -}}
- name: BROKER_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.broker.passwordSecret }}, key: password}
- name: MOCHI_REDIS_URL
  value: redis://:$(BROKER_PASSWORD)@{{ include "mochi.name" . }}-valkey:6379/0
{{- else -}}
- name: MOCHI_REDIS_URL
  value: redis://{{ include "mochi.name" . }}-valkey:6379/0
{{- end }}
{{- end }}

{{- define "mochi.envFrom" -}}
{{- if and .Values.outputs.s3 .Values.outputs.s3Secret }}
envFrom:
  - secretRef: {name: {{ .Values.outputs.s3Secret }}}
{{- end }}
{{- end }}

{{/* A volume of a pod: (list $ "weights" VOLUME). Without a size it lives as long as the pod. */}}
{{- define "mochi.volume" -}}
{{- $volume := index . 2 -}}
- name: {{ index . 1 }}
{{- if or $volume.existingClaim $volume.size }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-%s" (include "mochi.name" (index . 0)) (index . 1)) $volume.existingClaim }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}

{{- define "mochi.outputs" -}}
{{- if .Values.outputs.s3 }}
{{- include "mochi.volume" (list . "outputs" dict) }}
{{- else if or .Values.outputs.volume.existingClaim .Values.outputs.volume.size }}
{{- include "mochi.volume" (list . "outputs" .Values.outputs.volume) }}
{{- else }}
{{- fail "Gateways and workers share the videos: set outputs.s3, or outputs.volume.size, or outputs.volume.existingClaim." }}
{{- end }}
{{- end }}
