{{- /* Names leave room for the longest suffix and for what controllers append. A release's may have dots and begin with a digit, a
Service's may not. */ -}}
{{- define "wirepost.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = contains "wirepost" .Release.Name | ternary .Release.Name (printf "%s-wirepost" .Release.Name) -}}
{{- end -}}
{{- if regexMatch "^[0-9]" $name -}}
{{- $name = printf "wirepost-%s" .Release.Name -}}
{{- end -}}
{{- $name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* For objects without a namespace: it is part of the name. */ -}}
{{- define "wirepost.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "wirepost.fullname" .) -}}
{{- end -}}

{{- /* These never change: a Deployment's selector can't. Argument: root, component. */ -}}
{{- define "wirepost.selector" -}}
app.kubernetes.io/name: wirepost
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- /* Of pods: nothing that a new version of the chart changes, since each change restarts every pod. Argument: root, component. */ -}}
{{- define "wirepost.podLabels" -}}
{{ include "wirepost.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Argument: root, component. */ -}}
{{- define "wirepost.labels" -}}
{{ include "wirepost.selector" . }}
app.kubernetes.io/part-of: wirepost
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Argument: root, image. */ -}}
{{- define "wirepost.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Address at which clients reach the edges; empty = unknown. */ -}}
{{- define "wirepost.publicUrl" -}}
{{- if .Values.publicUrl -}}
{{- .Values.publicUrl | trimSuffix "/" -}}
{{- else if and .Values.ingress.enabled .Values.ingress.host -}}
{{- printf "%s://%s" (.Values.ingress.tls.enabled | ternary "https" "http") .Values.ingress.host -}}
{{- else if and .Values.gateway.enabled .Values.gateway.hostnames -}}
{{- printf "https://%s" (first .Values.gateway.hostnames) -}}
{{- end -}}
{{- end -}}

{{- define "wirepost.tlsSecret" -}}
{{- .Values.tls.secretName | default (printf "%s-tls" (include "wirepost.fullname" .)) -}}
{{- end -}}

{{- define "wirepost.keysSecret" -}}
{{- .Values.edge.keys.existingSecret | default "wirepost-edge-keys" -}}
{{- end -}}

{{- /* The public port of the edges. */ -}}
{{- define "wirepost.portName" -}}
{{- .Values.tls.enabled | ternary "https" "http" -}}
{{- end -}}
