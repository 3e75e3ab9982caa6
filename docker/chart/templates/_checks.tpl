{{/* Refuses values that contradict each other. */}}
{{- define "mochi.check" -}}
{{- $values := .Values -}}
{{- $gateway := $values.gateway -}}{{- $worker := $values.worker -}}{{- $keda := $values.keda -}}
{{- $mock := include "mochi.isMock" (include "mochi.settings" (list . $worker.settings) | fromJson) -}}
{{- if and $mock $worker.gpuResource }}
{{- fail "A worker without real weights needs no card: set worker.gpuResource: \"\", or unset MOCHI_MOCK." }}
{{- end }}
{{- if and $mock $values.weights.pull }}
{{- fail "A worker without real weights needs no pull: set weights.pull: false, or unset MOCHI_MOCK." }}
{{- end }}
{{- if not (or $mock $worker.gpuResource) }}
{{- fail "A worker with real weights needs a card: set worker.gpuResource, or set MOCHI_MOCK: \"true\" in settings." }}
{{- end }}
{{- include "mochi.checkDrain" (list . "worker" $worker "MOCHI_RUN_SECONDS") }}
{{- include "mochi.checkDrain" (list . "gateway" $gateway "MOCHI_V1_SECONDS") }}
{{- if $keda.enabled }}{{ include "mochi.checkReplicas" (list "keda" $keda) }}{{ end }}
{{- with $gateway.autoscaling }}
{{- if .enabled }}{{ include "mochi.checkReplicas" (list "gateway.autoscaling" .) }}{{ end }}
{{- end }}
{{- if and (or $keda.enabled $values.metrics.serviceMonitor.enabled)
      (not (or $values.metrics.public $values.metrics.keySecret)) }}
{{- fail "/metrics needs a key: set metrics.keySecret to a Secret with a key of the scope `admin`, or metrics.public: true." }}
{{- end }}
{{- end }}

{{/* Of settings: "true" if the engine has no real weights. */}}
{{- define "mochi.isMock" -}}
{{- $yes := list "true" "1" "yes" "on" "t" "y" -}}
{{- $chosen := or (has (dig "MOCHI_MOCK" "" . | toString | lower) $yes)
      (has (dig "MOCHI_MOCK_WEIGHTS" "" . | toString | lower) $yes) -}}
{{- if or $chosen (eq (dig "MOCHI_ENGINE" "" .) "fake") }}true{{ end }}
{{- end }}

{{/* (list $ NAME COMPONENT SETTING): what was set to last longer would be cut off at each stop. */}}
{{- define "mochi.checkDrain" -}}
{{- $name := index . 1 -}}{{- $component := index . 2 -}}{{- $setting := index . 3 -}}
{{- $seconds := dig $setting 0 (include "mochi.settings" (list (index . 0) $component.settings) | fromJson) -}}
{{- if gt ($seconds | toString | float64) (float64 $component.drainSeconds) }}
{{- fail (printf "Raise %s.drainSeconds (%s) to %s (%s), or lower that: a stop would cut it off."
      $name (include "mochi.text" $component.drainSeconds) $setting (include "mochi.text" $seconds)) }}
{{- end }}
{{- end }}

{{/* (list NAME VALUES) */}}
{{- define "mochi.checkReplicas" -}}
{{- $name := index . 0 -}}{{- $scale := index . 1 -}}
{{- if gt (int $scale.minReplicas) (int $scale.maxReplicas) }}
{{- fail (printf "%s.minReplicas (%v) is above %s.maxReplicas (%v). Lower one, or raise the other."
      $name $scale.minReplicas $name $scale.maxReplicas) }}
{{- end }}
{{- end }}
