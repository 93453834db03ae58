package dev.wirepost.spring;

import dev.wirepost.client.Message;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Type;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.springframework.aop.support.AopUtils;
import org.springframework.beans.factory.config.BeanPostProcessor;
import org.springframework.core.MethodIntrospector;
import org.springframework.core.ResolvableType;
import org.springframework.core.annotation.AnnotatedElementUtils;
import org.springframework.util.ReflectionUtils;
import tools.jackson.databind.JsonNode;

/** Finds the methods with {@link WirepostListener}. */
final class ListenerMethods implements BeanPostProcessor {
    private final List<Listener> found = Collections.synchronizedList(new ArrayList<>());

    /**
     * A method that handles messages.
     *
     * @param bean what it is called on
     * @param method itself
     * @param patterns the message types
     * @param queue its queue; empty: all
     * @param content the type of its messages' content
     */
    record Listener(Object bean, Method method, List<String> patterns, String queue, Type content) {
        void call(Message<?> message) throws Throwable {
            try {
                method.invoke(bean, message);
            } catch (InvocationTargetException error) {
                throw error.getTargetException();
            }
        }
    }

    List<Listener> all() {
        return List.copyOf(found);
    }

    @Override
    public Object postProcessAfterInitialization(Object bean, String name) {
        Class<?> type = AopUtils.getTargetClass(bean);
        if (type.getName().startsWith("org.springframework.")) {
            return bean;
        }
        Map<Method, WirepostListener> methods = MethodIntrospector.selectMethods(type,
                (MethodIntrospector.MetadataLookup<WirepostListener>) method ->
                        AnnotatedElementUtils.findMergedAnnotation(method, WirepostListener.class));
        methods.forEach((method, annotation) -> add(bean, AopUtils.selectInvocableMethod(method, bean.getClass()),
                method, annotation));
        return bean;
    }

    private void add(Object bean, Method callable, Method declared, WirepostListener annotation) {
        boolean one = declared.getParameterCount() == 1 && declared.getParameterTypes()[0] == Message.class;
        if (!one) {
            throw new IllegalStateException("@WirepostListener " + declared.toGenericString()
                    + ": the method must have one parameter, Message<…>");
        }
        ResolvableType content = ResolvableType.forMethodParameter(declared, 0).getGeneric(0);
        ReflectionUtils.makeAccessible(callable);
        found.add(new Listener(bean, callable, Arrays.asList(annotation.value()), annotation.queue(),
                content.resolve() == null || content.resolve() == Object.class ? JsonNode.class : content.getType()));
    }
}
