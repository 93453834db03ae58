{{- /* What the schema can't say: values that don't go together. All of them at once. */ -}}
{{- define "wirepost.validate" -}}
{{- $wrong := list -}}
{{- with .Values.edge.drain -}}
{{- if lt (int .deadlineSeconds) (add .endpointLagSeconds .windowSeconds | int) -}}
{{- $wrong = append $wrong (printf "edge.drain.deadlineSeconds (%d) is shorter than endpointLagSeconds and windowSeconds together (%d): clients would be cut before they are told to go" (int .deadlineSeconds) (add .endpointLagSeconds .windowSeconds | int)) -}}
{{- end -}}
{{- end -}}
{{- with .Values.edge.autoscaling -}}
{{- if lt (int .maxReplicas) (int .minReplicas) -}}
{{- $wrong = append $wrong "edge.autoscaling.maxReplicas is less than minReplicas" -}}
{{- end -}}
{{- if and .enabled (not (or .cpuPercent .memoryPercent .connections.average)) -}}
{{- $wrong = append $wrong "edge.autoscaling is enabled, and cpuPercent, memoryPercent and connections.average are all 0: set one, or edge.autoscaling.enabled=false" -}}
{{- end -}}
{{- if and .enabled .keda.enabled .connections.average (not .keda.serverAddress) -}}
{{- $wrong = append $wrong "edge.autoscaling.keda.serverAddress is missing: KEDA asks Prometheus for the connections" -}}
{{- end -}}
{{- end -}}
{{- with .Values.broker -}}
{{- if and .tls.enabled .stream.enabled (not .tls.caSecretName) -}}
{{- $wrong = append $wrong "broker.tls.caSecretName is missing: streams with TLS need the authority of the broker's certificates" -}}
{{- end -}}
{{- if and .bundled (or .tls.enabled .host .port .management.host .stream.host) -}}
{{- $wrong = append $wrong "broker.bundled runs a broker without TLS at an address of its own: leave out broker.tls, broker.host, broker.port, broker.management.host and broker.stream.host" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.bundledBroker.password (not .Values.broker.bundled) -}}
{{- $wrong = append $wrong "bundledBroker.password is set and broker.bundled is not: an existing broker's password belongs in the Secret broker.secretName" -}}
{{- end -}}
{{- with .Values.tls -}}
{{- if and .certificate.create (not .enabled) -}}
{{- $wrong = append $wrong "tls.certificate.create makes a certificate that nobody uses: set tls.enabled" -}}
{{- end -}}
{{- if and .enabled (not .certificate.create) (not .secretName) -}}
{{- $wrong = append $wrong "tls.secretName is missing: name a Secret, or set tls.certificate.create" -}}
{{- end -}}
{{- if and .certificate.create (not .certificate.issuerRef.name) -}}
{{- $wrong = append $wrong "tls.certificate.issuerRef.name is missing" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.certificate.create (not .Values.tls.certificate.dnsNames) (not (include "wirepost.publicUrl" .)) -}}
{{- $wrong = append $wrong "tls.certificate.dnsNames is missing, and there is no publicUrl to take a name from" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- $wrong = append $wrong "ingress.host is missing" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- $wrong = append $wrong "gateway.parentRefs is missing: name the Gateway" -}}
{{- end -}}
{{- $own := "^(app\\.kubernetes\\.io/(name|instance|component|part-of|managed-by|version)|helm\\.sh/chart)$" -}}
{{- $labels := dict "commonLabels" .Values.commonLabels "edge.podLabels" .Values.edge.podLabels "operator.podLabels" .Values.operator.podLabels -}}
{{- range $value, $map := $labels -}}
{{- range $label := keys $map | sortAlpha -}}
{{- if regexMatch $own $label -}}
{{- $wrong = append $wrong (printf "%s: the label %s is the chart's own, selectors need it" $value $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $part := list "edge" "operator" -}}
{{- range (index $.Values $part).extraEnv -}}
{{- if regexMatch "^(WIREPOST|BROKER)_" .name -}}
{{- $wrong = append $wrong (printf "%s.extraEnv: %s is the chart's own, since others depend on it (the grace period on the drain deadline, rights on names): set the value that makes it" $part .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $wrong -}}
{{- fail (printf "\n- %s\n" (join "\n- " $wrong)) -}}
{{- end -}}
{{- end -}}
