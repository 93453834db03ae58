{{- /* What the schema can't express: contradictory values. Reports all of them together. */ -}}
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
{{- if and .enabled (not (or .cpuPercent .memoryPercent (include "wirepost.edge.connectionsTarget" $ | int))) -}}
{{- $wrong = append $wrong "edge.autoscaling is enabled, and cpuPercent, memoryPercent and connections.average are all 0 (the latter is, by default, where no adapter serves it): set one, or edge.autoscaling.enabled=false" -}}
{{- end -}}
{{- if and .enabled .keda.enabled .connections.average (not .keda.serverAddress) -}}
{{- $wrong = append $wrong "edge.autoscaling.keda.serverAddress is missing: KEDA asks Prometheus for the connections" -}}
{{- end -}}
{{- end -}}
{{- with .Values.edge.service -}}
{{- $needs := dict "ClusterIP" (list "nodePort" "externalTrafficPolicy" "loadBalancerClass" "loadBalancerSourceRanges") "NodePort" (list "loadBalancerClass" "loadBalancerSourceRanges") "LoadBalancer" list -}}
{{- range $key := get $needs .type -}}
{{- if index $.Values.edge.service $key -}}
{{- $wrong = append $wrong (printf "edge.service.%s means nothing with edge.service.type=%s: leave it out, or take another type" $key $.Values.edge.service.type) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.broker -}}
{{- if and .bundled (or .tls.enabled .host .port .management.host .management.port .stream.host .stream.port) -}}
{{- $wrong = append $wrong "broker.bundled runs a broker without TLS at an address of its own: leave out broker.tls and every host and port of broker, broker.management and broker.stream" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.bundledBroker.password (not .Values.broker.bundled) -}}
{{- $wrong = append $wrong "bundledBroker.password is set and broker.bundled is not: an existing broker's password belongs in the Secret broker.secretName" -}}
{{- end -}}
{{- with .Values.tls -}}
{{- if and .clients.caSecretName (not .enabled) -}}
{{- $wrong = append $wrong "tls.clients.caSecretName means nothing without TLS at the edges: set tls.enabled, or let the ingress ask for certificates" -}}
{{- end -}}
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
{{- /* The same rule as in core/src/public_url.rs, which the programs use. The address is not shown: it may contain a password. */ -}}
{{- with include "wirepost.publicUrl" . -}}
{{- $ipv6 := "(H:){7}H|(H:){1,7}:|(H:){1,6}:H|(H:){1,5}(:H){1,2}|(H:){1,4}(:H){1,3}|(H:){1,3}(:H){1,4}|(H:){1,2}(:H){1,5}|H:(:H){1,6}|:((:H){1,7}|:)" | replace "H" "[0-9A-Fa-f]{1,4}" -}}
{{- $port := "0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])" -}}
{{- if not (regexMatch (printf "^(?i:https?|wss?)://(\\[(%s)\\]|[A-Za-z0-9_][A-Za-z0-9_-]*(\\.[A-Za-z0-9_][A-Za-z0-9_-]*)*\\.?)(:%s)?(/[A-Za-z0-9._~!$&'()*+,;=:@%%/-]*)?$" $ipv6 $port) .) -}}
{{- $wrong = append $wrong "publicUrl (without it the host of ingress or gateway) is nothing that clients can connect to: write https:// and a host, such as https://ws.example.com or https://example.com:8443/ws, without user, query or fragment; where the host has a wildcard set publicUrl to one name of it" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- $wrong = append $wrong "ingress.host is missing" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- $wrong = append $wrong "gateway.parentRefs is missing: name the Gateway" -}}
{{- end -}}
{{- range (lookup "apps/v1" "Deployment" .Release.Namespace "").items -}}
{{- $labels := .metadata.labels | default dict -}}
{{- if and (eq "wirepost" (get $labels "app.kubernetes.io/name")) (eq "operator" (get $labels "app.kubernetes.io/component")) (ne $.Release.Name (get $labels "app.kubernetes.io/instance")) -}}
{{- $wrong = append $wrong (printf "the release %s of wirepost is in namespace %s already, and both would take the same seed, keys, Lease and configurations: install into another namespace" (get $labels "app.kubernetes.io/instance") $.Release.Namespace) -}}
{{- end -}}
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
