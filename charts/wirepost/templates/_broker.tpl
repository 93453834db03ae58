{{- /* Address and credentials of the broker, for both programs. Argument: root, secret, user. Host and port come from the Secret by way of
variables; user and password as files of the Secret `user`, which are read at each connect, so that a rotation needs no restart. */ -}}
{{- define "wirepost.broker.env" -}}
{{- $broker := .root.Values.broker -}}
{{- $tls := $broker.tls.enabled -}}
{{- $host := include "wirepost.broker.host" .root -}}
{{- $port := include "wirepost.broker.fixedPort" .root -}}
- name: BROKER_HOST
  {{- if $host }}
  value: {{ $host | quote }}
  {{- else }}
  valueFrom: {secretKeyRef: {name: {{ .secret | quote }}, key: host}}
  {{- end }}
- name: BROKER_PORT
  {{- if $port }}
  value: {{ $port | quote }}
  {{- else }}
  valueFrom: {secretKeyRef: {name: {{ .secret | quote }}, key: port}}
  {{- end }}
- name: WIREPOST_AMQP
  value: {{ printf "%s://$(BROKER_HOST):$(BROKER_PORT)/%s" ($tls | ternary "amqps" "amqp") ($broker.vhost | replace "/" "%2F") }}
- name: WIREPOST_MANAGEMENT
  value: {{ printf "%s://%s:%s" ($tls | ternary "https" "http") ($broker.management.host | default "$(BROKER_HOST)") (include "wirepost.broker.managementPort" .root) }}
- name: WIREPOST_AMQP_USERNAME_FILE
  value: /etc/wirepost/broker/username
- name: WIREPOST_AMQP_PASSWORD_FILE
  value: /etc/wirepost/broker/password
{{- if $broker.tls.caSecretName }}
- name: WIREPOST_AMQP_CA_FILE
  value: /etc/wirepost/broker-ca/ca.crt
{{- end }}
{{- if $broker.tls.clientSecretName }}
- name: WIREPOST_AMQP_CERTIFICATE_FILE
  value: /etc/wirepost/broker-client/tls.crt
- name: WIREPOST_AMQP_KEY_FILE
  value: /etc/wirepost/broker-client/tls.key
{{- end }}
{{- end -}}

{{- define "wirepost.broker.mounts" -}}
- {name: broker, mountPath: /etc/wirepost/broker, readOnly: true}
{{- if .Values.broker.tls.caSecretName }}
- {name: broker-ca, mountPath: /etc/wirepost/broker-ca, readOnly: true}
{{- end }}
{{- if .Values.broker.tls.clientSecretName }}
- {name: broker-client, mountPath: /etc/wirepost/broker-client, readOnly: true}
{{- end }}
{{- end -}}

{{- /* The Secret with the edges' user. Never the operator's, who is an administrator. */ -}}
{{- define "wirepost.broker.edgeUserSecret" -}}
{{- .Values.broker.edgeSecretName | default "wirepost-edge-user" -}}
{{- end -}}

{{- /* Argument: root, user. */ -}}
{{- define "wirepost.broker.volumes" -}}
- name: broker
  secret:
    secretName: {{ .user | quote }}
    defaultMode: 288 # 0440, in the way that every parser reads
    items: [{key: username, path: username}, {key: password, path: password}]
{{- with .root.Values.broker.tls }}
{{- if .caSecretName }}
- name: broker-ca
  secret:
    secretName: {{ .caSecretName | quote }}
    items: [{key: {{ .caKey | quote }}, path: ca.crt}]
{{- end }}
{{- if .clientSecretName }}
- name: broker-client
  secret:
    secretName: {{ .clientSecretName | quote }}
    defaultMode: 288 # 0440, in the way that every parser reads
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
{{- end }}
{{- end }}
{{- end -}}

{{- define "wirepost.broker.host" -}}
{{- if .Values.broker.host -}}
{{- .Values.broker.host -}}
{{- else if .Values.broker.bundled -}}
{{- printf "%s-rabbitmq.%s.svc" (include "wirepost.fullname" .) .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{- /* Empty = in the Secret. */ -}}
{{- define "wirepost.broker.fixedPort" -}}
{{- if .Values.broker.port -}}
{{- int .Values.broker.port -}}
{{- else if .Values.broker.bundled -}}
5672
{{- end -}}
{{- end -}}

{{- /* For NetworkPolicies, which can't read the Secret. */ -}}
{{- define "wirepost.broker.amqpPort" -}}
{{- include "wirepost.broker.fixedPort" . | default (.Values.broker.tls.enabled | ternary "5671" "5672") -}}
{{- end -}}

{{- define "wirepost.broker.managementPort" -}}
{{- int (.Values.broker.management.port | default (.Values.broker.tls.enabled | ternary 15671 15672)) -}}
{{- end -}}

{{- define "wirepost.broker.streamPort" -}}
{{- int (.Values.broker.stream.port | default (.Values.broker.tls.enabled | ternary 5551 5552)) -}}
{{- end -}}

{{- define "wirepost.broker.streamUri" -}}
{{- printf "%s://%s:%s" (.Values.broker.tls.enabled | ternary "rabbitmq-stream+tls" "rabbitmq-stream") (.Values.broker.stream.host | default "$(BROKER_HOST)") (include "wirepost.broker.streamPort" .) -}}
{{- end -}}
