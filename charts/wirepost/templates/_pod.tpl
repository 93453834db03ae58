{{- /* What the pods of operator and edge have in common. Both meet Pod Security "restricted". */ -}}

{{- /* Argument: root, component, part (its values). */ -}}
{{- define "wirepost.pod.metadata" -}}
metadata:
  labels:
    {{- include "wirepost.podLabels" . | nindent 4 }}
    {{- with .part.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ .component }}
    {{- with .part.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "wirepost.pod.spec" -}}
serviceAccountName: {{ include "wirepost.fullname" .root }}-{{ .component }}
automountServiceAccountToken: true
# Variables generated from Services would begin with WIREPOST_ too.
enableServiceLinks: false
securityContext:
  {{- include "wirepost.pod.securityContext" 65532 | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .part.topologySpread.enabled }}
topologySpreadConstraints:
  {{- $all := . }}
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: {{ $all.part.topologySpread.whenUnsatisfiable }}
    # Old pods of a rollout don't count.
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "wirepost.selector" $all | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Argument: the user. */ -}}
{{- define "wirepost.pod.securityContext" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "wirepost.container.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* The pod's name, which identifies the replica. */ -}}
{{- define "wirepost.podName" -}}
valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- end -}}
