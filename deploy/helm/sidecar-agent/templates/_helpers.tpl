{{- define "sidecar-agent.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sidecar-agent.fullname" -}}
{{- $name := include "sidecar-agent.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sidecar-agent.selector" -}}
app.kubernetes.io/name: {{ include "sidecar-agent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sidecar-agent.labels" -}}
{{ include "sidecar-agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "sidecar-agent.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "sidecar-agent.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "sidecar-agent.image" -}}
{{- with .Values.image -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{- .repository -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end -}}

{{- /* Tells the agents of two pod templates apart, which answer at one address of the node. */ -}}
{{- define "sidecar-agent.instance" -}}
{{- printf "%s %s" (include "sidecar-agent.image" .) (toJson (omit .Values "staticConfig" "podMonitor" "prometheusRule" "dashboard" "crds" "rbac" "resourceQuota")) | sha256sum | trunc 10 -}}
{{- end -}}

{{- /* Whether the next agent starts beside the old one. */ -}}
{{- define "sidecar-agent.handsOver" -}}
{{- if and (eq .Values.mode "run") (eq .Values.updateStrategy.type "handover") (semverCompare ">=1.22.0-0" .Capabilities.KubeVersion.Version) -}}
true
{{- end -}}
{{- end -}}

{{- /* Given as a field from 1.30 on, as an annotation before. */ -}}
{{- define "sidecar-agent.hasAppArmorField" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}
true
{{- end -}}
{{- end -}}

{{- define "sidecar-agent.meshNamespace" -}}
{{- .Values.kubernetes.meshConfigMap.namespace | default .Release.Namespace -}}
{{- end -}}

{{- define "sidecar-agent.healthHost" -}}
{{- $address := .Values.metrics.address -}}
{{- if has $address (list "0.0.0.0" "127.0.0.1") -}}
127.0.0.1
{{- else if has $address (list "[::]" "[::1]") -}}
::1
{{- else -}}
{{- $address | trimPrefix "[" | trimSuffix "]" -}}
{{- end -}}
{{- end -}}

{{- define "sidecar-agent.isLocal" -}}
{{- if has .Values.metrics.address (list "127.0.0.1" "[::1]") -}}
true
{{- end -}}
{{- end -}}
